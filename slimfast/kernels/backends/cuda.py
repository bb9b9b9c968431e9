"""The CUDA kernels of ``slimfast._cuda``: tensors on one CUDA device, its current stream, no synchronisation.

Every op writes what its kernels need to know into int64 tables, copies them to the device once and launches
over all layers together. Memory comes from torch alone. With ``SLIMFAST_CUDA_EMULATE=1`` the same kernels run
on the CPU, on CPU tensors.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slimfast import _native
from slimfast.kernels.cuda_tables import (
    Reduction,
    Tables,
    covariance_bins,
    reduction_of,
)
from slimfast.kernels.prepared import Prepared, host_table

_ELEMENT_BYTES = (1, 2, 4, 8)
# Above so many rows a step of a pivoted Cholesky takes longer than the barrier of a cluster.
_PIVOT_ROWS_OF_ONE_BLOCK = 512


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """The saved import error, a missing or too old device, and tensors that the kernels do not read."""
    native = _native.cuda()
    reasons = [] if native.reason is None else [native.reason]
    emulated = _native.cuda_is_emulated()
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
        unfit = {str(t.dtype) for t in inputs if t.element_size() not in _ELEMENT_BYTES}
        reasons += [f"elements of {dtype}" for dtype in sorted(unfit)]
    return reasons


@dataclass(frozen=True, slots=True)
class _Device:
    """Where a call runs: the module, the torch device, and the kernels' names for it and the stream."""

    module: ModuleType
    kind: torch.device
    index: int
    stream: int

    @property
    def on(self) -> tuple[int, int]:
        return self.index, self.stream

    def table(self, numbers: list[int]) -> Tensor:
        """The numbers on the device: one copy, not waited for."""
        host = host_table(len(numbers), self.kind)
        return host.copy_(torch.tensor(numbers)).to(self.kind, non_blocking=True)

    def table_of(self, written: Any) -> Tensor:
        """The same for numbers that write themselves to an address."""
        host = host_table(len(written), self.kind)
        written.write(host.data_ptr())
        return host.to(self.kind, non_blocking=True)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.kind)


@contextlib.contextmanager
def _device_of(tensor: Tensor) -> Iterator[_Device]:
    module = _native.cuda().module
    assert module is not None, "select_backend asks why_not first"
    if _native.cuda_is_emulated():
        yield _Device(module, tensor.device, 0, 0)
        return
    with torch.cuda.device(tensor.device):
        stream = torch.cuda.current_stream().cuda_stream
        yield _Device(module, tensor.device, torch.cuda.current_device(), stream)


@contextlib.contextmanager
def _side_streams(device: _Device, count: int) -> Iterator[list[tuple[int, int]]]:
    """``count`` streams that start after the current one and that it waits for; itself if one will do."""
    if device.kind.type == "cpu" or count < 2:
        yield [device.on] * count
        return
    current = torch.cuda.current_stream()
    sides = [torch.cuda.Stream() for _ in range(count)]  # type: ignore[no-untyped-call]
    for side in sides:
        side.wait_stream(current)
    yield [(device.index, side.cuda_stream) for side in sides]
    for side in sides:
        current.wait_stream(side)


def covariance(xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]) -> tuple[list[Tensor], Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_covariance`; the traces stay on the device."""
    call = prepare_covariance(xs, rows, dtypes)
    call.launch()
    return call.results


def prepare_covariance(
    xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]
) -> Prepared[tuple[list[Tensor], Tensor]]:
    """The same, to be launched."""
    with _device_of(xs[0]) as device:
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
        with _device_of(xs[0]) as device:
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
    """The same, to be launched."""
    with _device_of(mats[0]) as device:
        module, limits = device.module, device.module.device_limits(device.index)
        values = [device.empty(mat.shape[0], dtype=mat.dtype) for mat in mats]
        bins: dict[Reduction, list[int]] = {}
        # The largest matrices decide when all are done: they go first.
        for i in sorted(range(len(mats)), key=lambda i: -mats[i].shape[0]):
            reduction = reduction_of(module, mats[i].shape[0], mats[i].dtype == torch.float64, limits)
            bins.setdefault(reduction, []).append(i)
        tables, plans = Tables(), []
        workspaces = []
        for reduction, indices in bins.items():
            sizes = [mats[i].shape[0] for i in indices]
            workspace = _EigenWorkspace.of(device, reduction, sizes)
            workspaces.append(workspace)
            layers = [
                [mat.data_ptr(), m, *mat.stride(), tridiagonal, storage, out.data_ptr()]
                for mat, m, out, tridiagonal, storage in zip(
                    [mats[i] for i in indices],
                    sizes,
                    [values[i] for i in indices],
                    workspace.tridiagonals,
                    workspace.storages,
                    strict=True,
                )
            ]
            blocks = [-(-m // module.STURM_VALUES) for m in sizes]
            plans.append((reduction, tables.add(layers, blocks), sizes, sum(blocks)))
        table = device.table(tables.numbers)

    def launch() -> None:
        # The workspaces live as long as this function; the current stream waits for the side streams.
        with _device_of(mats[0]) as device, _side_streams(device, len(workspaces)) as streams:
            module = device.module
            for on, (reduction, place, sizes, blocks_in_all) in zip(streams, plans, strict=True):
                at, count, is_double = table.data_ptr() + place, len(sizes), reduction.is_double
                layers_at = at + 8 * (count + 1)
                if reduction.stages == 0:
                    module.eigvalsh_warp(*on, layers_at, count, is_double)
                    continue
                if reduction.stages == 1:
                    module.tridiagonalise(*on, layers_at, count, is_double, sizes[0], reduction.cluster)
                else:
                    module.reduce_to_band(*on, layers_at, sizes, is_double, reduction.cluster)
                    module.chase_bulges(*on, layers_at, count, is_double)
                module.sturm_eigenvalues(*on, at, count, blocks_in_all, is_double, sizes[0])

    return Prepared(values, launch)


@dataclass(frozen=True, slots=True)
class _EigenWorkspace:
    """Memory of one bin of matrices, and where in it each has its tridiagonal form and its working set."""

    memory: tuple[Tensor, Tensor]
    tridiagonals: list[int]
    storages: list[int]

    @classmethod
    def of(cls, device: _Device, reduction: Reduction, sizes: list[int]) -> _EigenWorkspace:
        module = device.module
        if reduction.stages == 0:
            none = device.empty(0)
            return cls((none, none), [0] * len(sizes), [0] * len(sizes))
        tridiagonal = device.empty(sum(2 * m + 1 for m in sizes))
        starts = itertools.accumulate((2 * m + 1 for m in sizes[:-1]), initial=0)
        tridiagonals = [tridiagonal.data_ptr() + 8 * start for start in starts]
        if reduction.stages == 1:
            return cls((tridiagonal, device.empty(0)), tridiagonals, [0] * len(sizes))
        needs = [module.band_workspace_bytes(m, reduction.is_double) for m in sizes]
        storage = device.empty(sum(needs), dtype=torch.uint8)
        places = itertools.accumulate(needs[:-1], initial=0)
        return cls((tridiagonal, storage), tridiagonals, [storage.data_ptr() + place for place in places])


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
    """The same, to be launched, padded to the ranks; with the numbers of picks, which stay on the device."""
    with _device_of(mats[0]) as device:
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
        with _device_of(mats[0]) as device:
            address, count = table.data_ptr(), len(workspaces)
            device.module.pivoted_cholesky(*device.on, address, count, shared, cluster)

    return Prepared((padded, picked), launch)


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    call = prepare_gather(tensors, keeps)
    call.launch()
    return call.results


def prepare_gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> Prepared[list[Tensor]]:
    """The same, to be launched."""
    with _device_of(tensors[0]) as device:
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
        with _device_of(sources[0]) as device:
            for copy, tensor in copies:
                copy.copy_(tensor)
            device.module.gather(*device.on, table.data_ptr(), plan.count, plan.tiles)

    return Prepared(thin, launch)


def _with_few_dims(tensor: Tensor) -> Tensor:
    """Itself, or room for a contiguous copy: the kernel sees five dims, and whatever is contiguous merges
    into them, as at most two are kept.
    """
    if tensor.ndim <= 5 or tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
