"""The C++ kernels of ``slimfast._cpu``: tensors on the CPU, any strides, torch's number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slimfast.kernels import native
from slimfast.kernels.backends.contract import PreparedOps
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.dtypes import CODES, ELEMENT_BYTES
from slimfast.kernels.results import CrossMoments, Moments

# CUDA graphs do not hold what runs on the CPU.
PREPARE: PreparedOps = {}


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """List the module's saved import error, and every kind of tensor here that it does not read."""
    loaded = native.cpu()
    reasons = [] if loaded.reason is None else [loaded.reason]
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


def moments(
    xs: list[Tensor],
    masks: list[Tensor | None],
    into: list[Moments],
    dtypes: list[torch.dtype],
    *,
    isa: str = "",
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_moments`: xs are (variables, positions ...)."""
    tasks = []
    for x, mask, sums, dtype in zip(xs, masks, into, dtypes, strict=True):
        target = (sums.count, sums.mean.data_ptr(), 0, sums.squares.data_ptr())
        tasks.append((*_positions(x, x, mask), dtype == torch.float64, target))
    for sums, count in zip(into, _module().moments(tasks, torch.get_num_threads(), isa), strict=True):
        sums.count = count


def cross_covariance(
    xs: list[Tensor],
    ys: list[Tensor],
    masks: list[Tensor | None],
    into: list[CrossMoments],
    dtypes: list[torch.dtype],
    *,
    isa: str = "",
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_cross_covariance`: the same kernel, of two operands."""
    tasks = []
    for x, y, mask, sums, dtype in zip(xs, ys, masks, into, dtypes, strict=True):
        target = (sums.count, *(t.data_ptr() for t in (sums.mean_x, sums.mean_y, sums.products)))
        tasks.append((*_positions(x, y, mask), dtype == torch.float64, target))
    for sums, count in zip(into, _module().moments(tasks, torch.get_num_threads(), isa), strict=True):
        sums.count = count


def _positions(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Any, ...]:
    """Describe two operands (variables, positions ...), their positions and which of them count."""
    # Many small ones come here: a tensor is asked for each thing once.
    shape, strides = x.shape, x.stride()
    own = other = (x.data_ptr(), CODES[x.dtype], shape[0], strides[0])
    other_strides = strides
    if y is not x:
        other_strides = y.stride()
        other = (y.data_ptr(), CODES[y.dtype], y.shape[0], other_strides[0])
    mask_strides = (0,) * (len(shape) - 1) if mask is None else mask.stride()
    dims = list(zip(shape[1:], strides[1:], other_strides[1:], mask_strides, strict=True))
    return own, other, dims, 0 if mask is None else mask.data_ptr()


def patch_moments(
    xs: list[Tensor],
    convolutions: list[Convolution],
    into: list[Moments],
    dtypes: list[torch.dtype],
    *,
    isa: str = "",
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_patch_moments`: each group is a layer of its own."""
    tasks = []
    for x, conv, sums, dtype in zip(xs, convolutions, into, dtypes, strict=True):
        channels = x.shape[1] // conv.groups
        outputs = conv.outputs(x.shape[2:])
        dims = list(zip(x.shape[2:], x.stride()[2:], *conv[:4], outputs, strict=True))
        dims = [(1, 0, 1, 1, 0, 1, 1)] * (3 - len(dims)) + dims
        for group in range(conv.groups):
            start = x.data_ptr() + group * channels * x.stride(1) * x.element_size()
            patches = (start, CODES[x.dtype], len(x), x.stride(0), channels, x.stride(1), dims)
            target = (sums.count, sums.mean[group].data_ptr(), 0, sums.squares[group].data_ptr())
            tasks.append((patches, dtype == torch.float64, target))
    counts = iter(_module().patch_moments(tasks, torch.get_num_threads(), isa))
    for conv, sums in zip(convolutions, into, strict=True):
        # All groups have the same positions.
        sums.count = max(next(counts) for _ in range(conv.groups))


def cholesky_solve(
    mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]], *, isa: str = ""
) -> list[tuple[Tensor, Tensor]]:
    """See :func:`slimfast.kernels.cholesky_solve.grouped_cholesky_solve`: (solutions, failures) of each."""
    solved, tasks = [], []
    for a, b, each in zip(mats, rhs, dampings, strict=True):
        solutions = torch.empty(len(each), *b.shape, dtype=b.dtype, device="cpu")
        solved.append(solutions)
        view, right, address = _view(a), _view(b), solutions.data_ptr()
        step = b.shape[0] * b.shape[1] * b.element_size()
        tasks += [(view, right, damping, address + i * step) for i, damping in enumerate(each)]
    failures = torch.tensor(
        _module().cholesky_solve(tasks, torch.get_num_threads(), isa), dtype=torch.int64, device="cpu"
    )
    return list(zip(solved, torch.split(failures, [len(each) for each in dampings]), strict=True))
