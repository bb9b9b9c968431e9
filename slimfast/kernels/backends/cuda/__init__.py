"""The CUDA kernels of ``slimfast._cuda``: tensors on one CUDA device, its current stream, no synchronisation.

Every op writes what its kernels need to know into int64 tables, copies them to the device once and launches
over all layers together. Memory comes from torch alone. With ``SLIMFAST_CUDA_EMULATE=1`` the same kernels run
on the CPU, on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimfast.kernels import native
from slimfast.kernels.backends.contract import Prepared, PreparedOps, member_by_member
from slimfast.kernels.backends.cuda import eigvalsh_stages
from slimfast.kernels.backends.cuda.device import device_of
from slimfast.kernels.backends.cuda.moment_launches import cross_covariance as cross_covariance
from slimfast.kernels.backends.cuda.moment_launches import moments as moments
from slimfast.kernels.backends.cuda.moment_launches import patch_moments as patch_moments
from slimfast.kernels.backends.cuda.solve_launches import cholesky_solve as cholesky_solve
from slimfast.kernels.backends.cuda.tables import Tables, covariance_bins
from slimfast.kernels.dtypes import ELEMENT_BYTES

# Above so many rows a step of a pivoted Cholesky takes longer than the barrier of a cluster.
_PIVOT_ROWS_OF_ONE_BLOCK = 512


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """List the saved import error, a missing or too old device, and tensors that the kernels do not read."""
    loaded = native.cuda()
    reasons = [] if loaded.reason is None else [loaded.reason]
    emulated = native.cuda_is_emulated()
    if not emulated and torch.version.cuda is None:
        reasons.append("this PyTorch is built without CUDA")
    elif not emulated and not torch.cuda.is_available():
        reasons.append("no CUDA device or driver was found")
    wanted, where = ("cpu", "the CPU (emulation)") if emulated else ("cuda", "a CUDA device")
    reasons += [
        f"tensors on {kind}, not on {where}" for kind in sorted({t.device.type for t in inputs} - {wanted})
    ]
    for device in sorted({t.device.index for t in inputs if t.device.type == "cuda"}):
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            reasons.append(f"cuda:{device} has compute capability {major}.{minor}, below 8.0")
    layouts = {str(t.layout) for t in inputs if t.layout != torch.strided}
    reasons += [f"tensors of layout {layout}" for layout in sorted(layouts)]
    if op == "gather":
        unfit = {str(t.dtype) for t in inputs if t.element_size() not in ELEMENT_BYTES}
        reasons += [f"elements of {dtype}" for dtype in sorted(unfit)]
    return reasons


def covariance(xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]) -> tuple[list[Tensor], Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_covariance`; the traces stay on the device."""
    call = prepare_covariance(xs, rows, dtypes)
    call.launch()
    return call.results


def joint_covariance(
    layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype]
) -> tuple[list[Tensor], Tensor]:
    """Compute the same for layers of several members, one turn of members after another."""
    return member_by_member(covariance, layers, rows, dtypes)


def prepare_covariance(
    xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]
) -> Prepared[tuple[list[Tensor], Tensor]]:
    """Make a call of :func:`covariance` ready to be launched."""
    with device_of(xs[0]) as device:
        module, count = device.module, len(xs)
        sizes = [x.shape[0] if by_rows else x.shape[1] for x, by_rows in zip(xs, rows, strict=True)]
        matrices = [device.empty(m, m, dtype=dtype) for m, dtype in zip(sizes, dtypes, strict=True)]
        shared_bytes, _ = module.device_limits(device.index)
        bins, layers = covariance_bins(module, xs, rows, matrices, shared_bytes)
        tables = Tables()
        moment_blocks = [-(-x.shape[0] // module.MOMENT_ROWS) for x in xs]
        moments_at = tables.add(layers, moment_blocks)
        plans = [(batch, *batch.add_to(tables, module.COVARIANCE_FINISH_ROWS)) for batch in bins]
        table = device.table(tables.numbers)
        means, squares = device.empty(2, sum(x.shape[0] for x in xs))
        traces = device.empty(count)
        workspaces = [
            device.empty(batch.partial, dtype=torch.float64 if batch.in_double else torch.float32)
            for batch in bins
        ]

    def launch() -> None:
        with device_of(xs[0]) as device:
            module, on, at = device.module, device.on, table.data_ptr()
            moments = (at + moments_at, count, sum(moment_blocks), means.data_ptr(), squares.data_ptr())
            module.row_moments(*on, *moments)
            bare_layers = at + moments_at + 8 * (count + 1)
            module.covariance_traces(*on, bare_layers, count, squares.data_ptr(), traces.data_ptr())
            for (batch, tiles, finish), workspace in zip(plans, workspaces, strict=True):
                kind, partial = (batch.in_double, batch.tile), workspace.data_ptr()
                module.covariance_tiles(*on, *tiles.at(at), *kind, means.data_ptr(), partial)
                module.covariance_finish(*on, *finish.at(at), *kind, partial)

    return Prepared((matrices, traces), launch)


def eigvalsh(mats: list[Tensor]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_eigvalsh`; NaN for a matrix that is not finite."""
    call = prepare_eigvalsh(mats)
    call.launch()
    return call.results


def prepare_eigvalsh(mats: list[Tensor]) -> Prepared[list[Tensor]]:
    """Make a call of :func:`eigvalsh` ready to be launched."""
    with device_of(mats[0]) as device:
        values = device.vectors([mat.shape[0] for mat in mats], [mat.dtype for mat in mats])
        start = eigvalsh_stages.prepare(device, eigvalsh_stages.listed(mats, values))

    def launch() -> None:
        with device_of(mats[0]) as device:
            start(device)

    return Prepared(values, launch)


def eigvalsh_stacked(mats: Tensor) -> Tensor:
    """Compute the eigenvalues (b, m) of a stack (b, m, m), without a look at each."""
    with device_of(mats) as device:
        values = device.empty(*mats.shape[:2], dtype=mats.dtype)
        eigvalsh_stages.prepare(device, eigvalsh_stages.stacked(mats, values))(device)
    return values


def pivoted_cholesky(mats: list[Tensor], ranks: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See :func:`slimfast.kernels.ops.grouped_pivoted_cholesky`: (order, factor, residual) of each matrix.

    How many rows were picked decides the shapes, so this waits for the device once.
    """
    call = prepare_pivoted_cholesky(mats, ranks)
    call.launch()
    padded, picked = call.results
    return [
        (order[:count], factor[:, :count], residual[:count])
        for (order, factor, residual), count in zip(padded, picked.tolist(), strict=True)
    ]


def prepare_pivoted_cholesky(
    mats: list[Tensor], ranks: list[int]
) -> Prepared[tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]]:
    """Make a call of :func:`pivoted_cholesky` ready to be launched, padded to the ranks; with the numbers of
    picks, which stay on the device.
    """
    with device_of(mats[0]) as device:
        _, has_clusters = device.module.device_limits(device.index)
        picked = device.empty(len(mats), dtype=torch.int64)
        padded, workspaces, layers = [], [], []
        for i, (mat, rank) in enumerate(zip(mats, ranks, strict=True)):
            n, is_double = mat.shape[0], mat.dtype == torch.float64
            order = device.empty(rank, dtype=torch.int64)
            factor, residual = device.empty(rank, n, dtype=mat.dtype), device.empty(rank, dtype=mat.dtype)
            padded.append((order, factor.T, residual))
            left, columns = device.empty(n), factor if is_double else device.empty(rank, n)
            workspaces.append((left, columns))
            # Symmetric, so either order of the indices will do: along rows that are contiguous if any are.
            strides = sorted(mat.stride(), key=lambda stride: stride == 1)
            layer = [mat.data_ptr(), n, rank, *strides, left.data_ptr(), columns.data_ptr()]
            layer += [0 if is_double else factor.data_ptr(), residual.data_ptr(), order.data_ptr()]
            layers.append([*layer, picked.data_ptr() + 8 * i, int(is_double)])
        # The largest decide when all are done: they go first, and get several blocks each.
        layers.sort(key=lambda layer: -layer[1])
        shared = sum(layer[1] > _PIVOT_ROWS_OF_ONE_BLOCK for layer in layers) if has_clusters else 0
        cluster = device.module.MAX_CLUSTER if shared else 1
        tables = Tables()
        tables.add(layers)
        table = device.table(tables.numbers)

    def launch() -> None:
        # The workspaces live as long as this function.
        with device_of(mats[0]) as device:
            address, count = table.data_ptr(), len(workspaces)
            device.module.pivoted_cholesky(*device.on, address, count, shared, cluster)

    return Prepared((padded, picked), launch)


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    call = prepare_gather(tensors, keeps)
    call.launch()
    return call.results


def prepare_gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> Prepared[list[Tensor]]:
    """Make a call of :func:`gather` ready to be launched."""
    with device_of(tensors[0]) as device:
        thin, layers = [], []
        distinct = {id(index): index for keep in keeps for index in keep.values()}
        indices = [index.contiguous() for index in distinct.values()]
        number_of = {key: number for number, key in enumerate(distinct)}
        # What the table points to; copies are made anew by every launch.
        sources = [_with_few_dims(tensor) for tensor in tensors]
        copies = [(s, t.detach()) for s, t in zip(sources, tensors, strict=True) if s is not t]
        for source, keep in zip(sources, keeps, strict=True):
            shape = list(source.shape)
            numbers = [-1] * len(shape)
            for dim, index in keep.items():
                shape[dim], numbers[dim] = len(index), number_of[id(index)]
            out = device.empty(*shape, dtype=source.dtype)
            thin.append(out)
            dims = list(zip(shape, source.stride(), numbers, strict=True))
            layers.append((source.data_ptr(), out.data_ptr(), source.element_size(), dims))
        plan = device.module.GatherTable(layers, [(index.data_ptr(), len(index)) for index in indices])
        table = device.table_of(plan)

    def launch() -> None:
        with device_of(sources[0]) as device:
            for copy, tensor in copies:
                copy.copy_(tensor)
            device.module.gather(*device.on, table.data_ptr(), plan.count, plan.tiles)

    return Prepared(thin, launch)


def _with_few_dims(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or room for a contiguous copy: the kernel sees five dims, and whatever is
    contiguous merges into them, as at most two are kept.
    """
    if tensor.ndim <= 5 or tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


PREPARE: PreparedOps = {
    "covariance": prepare_covariance,
    "eigvalsh": prepare_eigvalsh,
    "pivoted_cholesky": prepare_pivoted_cholesky,
    "gather": prepare_gather,
}
