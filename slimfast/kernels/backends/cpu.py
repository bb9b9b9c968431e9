"""The C++ kernels of ``slimfast._cpu``: tensors on the CPU, any strides, torch's number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from slimfast.kernels import native
from slimfast.kernels.backends.contract import PreparedOps, absent, why_absent
from slimfast.kernels.dtypes import CODES, ELEMENT_BYTES

# CUDA graphs do not hold what runs on the CPU.
PREPARE: PreparedOps = {}


_ABSENT = ("moments", "cross_covariance", "patch_moments", "cholesky_solve")


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """List the module's saved import error, and every kind of tensor here that it does not read."""
    loaded = native.cpu()
    reasons = [] if loaded.reason is None else [loaded.reason]
    if loaded.module is not None and op in _ABSENT:
        reasons.append(why_absent("compiled CPU", op))
    # Asked for every call: the kinds are spelled out only where there are others.
    if not all(t.is_cpu for t in inputs):
        kinds = {t.device.type for t in inputs} - {"cpu"}
        reasons += [f"tensors on {kind}, not on the CPU" for kind in sorted(kinds)]
    layouts = {str(t.layout) for t in inputs if t.layout != torch.strided}
    reasons += [f"tensors of layout {layout}" for layout in sorted(layouts)]
    if op == "gather":
        unfit = {str(t.dtype) for t in inputs if t.element_size() not in ELEMENT_BYTES}
        reasons += [f"elements of {dtype}" for dtype in sorted(unfit)]
    return reasons


def _module() -> ModuleType:
    module = native.cpu().module
    assert module is not None, "select_backend asks why_not first"
    return module


def _view(x: Tensor) -> tuple[int, int, int, int, int, int]:
    rows, cols = x.shape
    row_stride, col_stride = x.stride()
    return x.data_ptr(), CODES[x.dtype], rows, cols, row_stride, col_stride


def covariance(
    xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype], *, isa: str = ""
) -> tuple[list[Tensor], Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_covariance`: ``rows[i]`` chooses the side."""
    return joint_covariance([[x] for x in xs], rows, dtypes, isa=isa)


def joint_covariance(
    layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype], *, isa: str = ""
) -> tuple[list[Tensor], Tensor]:
    """Compute the same for layers of several members, which are added up in one pass."""
    matrices, tasks = [], []
    for members, by_rows, dtype in zip(layers, rows, dtypes, strict=True):
        m = members[0].shape[0] if by_rows else members[0].shape[1]
        out = torch.empty(m, m, dtype=dtype, device="cpu")
        matrices.append(out)
        tasks.append(([_view(x) for x in members], by_rows, CODES[dtype], out.data_ptr()))
    traces = _module().covariance(tasks, torch.get_num_threads(), isa)
    return matrices, torch.tensor(traces, dtype=torch.float64, device="cpu")


def eigvalsh(mats: list[Tensor], *, isa: str = "") -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_eigvalsh`; NaN for a matrix that is not finite."""
    values: list[Tensor] = [torch.empty(0, device="cpu")] * len(mats)
    matrices = []
    for dtype in {mat.dtype for mat in mats}:
        # One allocation for all of a dtype: small matrices would spend their time on many.
        chosen = [i for i, mat in enumerate(mats) if mat.dtype == dtype]
        sizes = [mats[i].shape[0] for i in chosen]
        together = torch.empty(sum(sizes), dtype=dtype, device="cpu")
        address, step = together.data_ptr(), together.element_size()
        for i, size, out in zip(chosen, sizes, torch.split(together, sizes), strict=True):
            values[i] = out
            matrices.append((_view(mats[i]), address))
            address += size * step
    _module().eigvalsh(matrices, torch.get_num_threads(), isa)
    return values


def eigvalsh_stacked(mats: Tensor, *, isa: str = "") -> Tensor:
    """Compute the same for a stack (b, m, m), which is looked at once; (b, m)."""
    count, m, _ = mats.shape
    stride, row_stride, col_stride = mats.stride()
    values = torch.empty(count, m, dtype=mats.dtype, device="cpu")
    first = (mats.data_ptr(), CODES[mats.dtype], m, m, row_stride, col_stride)
    _module().eigvalsh_stacked(first, count, stride, values.data_ptr(), torch.get_num_threads(), isa)
    return values


def pivoted_cholesky(
    mats: list[Tensor], ranks: list[int], *, isa: str = ""
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See :func:`slimfast.kernels.ops.grouped_pivoted_cholesky`: (order, factor, residual) of each matrix."""
    outputs = []
    for mat, rank in zip(mats, ranks, strict=True):
        order = torch.empty(rank, dtype=torch.int64, device="cpu")
        factor = torch.empty(rank, mat.shape[0], dtype=mat.dtype, device="cpu")
        outputs.append((order, factor, torch.empty(rank, dtype=mat.dtype, device="cpu")))
    matrices = [
        (_view(mat), rank, order.data_ptr(), factor.data_ptr(), residual.data_ptr())
        for mat, rank, (order, factor, residual) in zip(mats, ranks, outputs, strict=True)
    ]
    picked = _module().pivoted_cholesky(matrices, torch.get_num_threads(), isa)
    return [
        (order[:r], factor[:r].T, residual[:r])
        for (order, factor, residual), r in zip(outputs, picked, strict=True)
    ]


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    thin, tasks = [], []
    # The kernel reads the indices from these; a group's indices cut many tensors.
    distinct = {id(index): index for keep in keeps for index in keep.values()}
    indices = {key: index.contiguous() for key, index in distinct.items()}
    lengths = {key: (index.numel(), index.data_ptr()) for key, index in indices.items()}
    for tensor, keep in zip(tensors, keeps, strict=True):
        shape = list(tensor.shape)
        addresses = [0] * len(shape)
        for dim, index in keep.items():
            shape[dim], addresses[dim] = lengths[id(index)]
        out = torch.empty(shape, dtype=tensor.dtype, device="cpu")
        thin.append(out)
        dims = list(zip(shape, tensor.stride(), addresses, strict=True))
        tasks.append((tensor.data_ptr(), out.data_ptr(), tensor.element_size(), dims))
    _module().gather(tasks, torch.get_num_threads())
    return thin


moments = absent("cpu", "compiled CPU", "moments")
cross_covariance = absent("cpu", "compiled CPU", "cross_covariance")
patch_moments = absent("cpu", "compiled CPU", "patch_moments")
cholesky_solve = absent("cpu", "compiled CPU", "cholesky_solve")
