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

import torch
from torch import Tensor

from slimfast import _native
from slimfast.kernels.cuda_tables import (
    MAX_GATHER_ROW,
    CovarianceBin,
    Reduction,
    Tables,
    can_gather,
    covariance_bins,
    gather_layer,
    reduction_of,
)

_ELEMENT_BYTES = (1, 2, 4, 8)
# Rows of a pivoted Cholesky that are worth a block of their own.
_PIVOT_ROWS_PER_BLOCK = 512


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
        if any(t.ndim > 0 and t.numel() // max(t.shape[0], 1) >= MAX_GATHER_ROW for t in inputs):
            reasons.append(f"a tensor with {MAX_GATHER_ROW} elements or more in one slice of its first dim")
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

    def table(self, numbers: list[int], *more: Tensor) -> Tensor:
        """The numbers, then the other int64 tensors, on the device: one copy, not waited for."""
        table = torch.cat([torch.tensor(numbers, dtype=torch.int64), *more])
        return table if self.kind.type == "cpu" else table.pin_memory().to(self.kind, non_blocking=True)

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
    with _device_of(xs[0]) as device:
        sizes = [x.shape[0] if by_rows else x.shape[1] for x, by_rows in zip(xs, rows, strict=True)]
        matrices = [device.empty(m, m, dtype=dtype) for m, dtype in zip(sizes, dtypes, strict=True)]
        bins, layers = covariance_bins(device.module, xs, rows, matrices)
        traces = device.empty(len(xs))
        _launch_covariance(device, bins, layers, traces, sum(x.shape[0] for x in xs))
    return matrices, traces


def _launch_covariance(
    device: _Device, bins: list[CovarianceBin], layers: list[list[int]], traces: Tensor, all_rows: int
) -> None:
    module, on, count = device.module, device.on, len(layers)
    tables = Tables()
    moment_blocks = [-(-layer[2] // module.MOMENT_ROWS) for layer in layers]
    moments = tables.add(layers, moment_blocks)
    plans = []
    for batch in bins:
        blocks = [tiles * splits for tiles, splits in zip(batch.tiles, batch.splits, strict=True)]
        split = [i for i, splits in enumerate(batch.splits) if splits > 1]
        finish_blocks = [batch.tiles[i] for i in split]
        finish = tables.add([batch.layers[i] for i in split], finish_blocks)
        plans.append((batch, tables.add(batch.layers, blocks), sum(blocks), finish, finish_blocks))
    table = device.table(tables.numbers)
    at = table.data_ptr()
    means, squares = device.empty(2, all_rows)
    module.row_moments(*on, at + moments, count, sum(moment_blocks), means.data_ptr(), squares.data_ptr())
    bare_layers = at + moments + 8 * (count + 1)
    module.covariance_traces(*on, bare_layers, count, squares.data_ptr(), traces.data_ptr())
    for batch, place, blocks_in_all, finish, finish_blocks in plans:
        workspace = device.empty(batch.partial, dtype=torch.float64 if batch.in_double else torch.float32)
        kind, partial = (batch.in_double, batch.tile), workspace.data_ptr()
        module.covariance_tiles(
            *on, at + place, len(batch.layers), blocks_in_all, *kind, means.data_ptr(), partial
        )
        module.covariance_finish(*on, at + finish, len(finish_blocks), sum(finish_blocks), *kind, partial)


def eigvalsh(mats: list[Tensor]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_eigvalsh`; NaN for a matrix that is not finite."""
    with _device_of(mats[0]) as device:
        module, limits = device.module, device.module.device_limits(device.index)
        values = [device.empty(mat.shape[0], dtype=mat.dtype) for mat in mats]
        bins: dict[Reduction, list[int]] = {}
        # The largest matrices decide when all are done: they go first.
        for i in sorted(range(len(mats)), key=lambda i: -mats[i].shape[0]):
            reduction = reduction_of(module, mats[i].shape[0], mats[i].dtype == torch.float64, limits)
            bins.setdefault(reduction, []).append(i)
        tables, plans = Tables(), []
        # Freed in the current stream's order, which waits for the side streams.
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
        with _side_streams(device, len(plans)) as streams:
            for on, (reduction, place, sizes, blocks_in_all) in zip(streams, plans, strict=True):
                at, count, is_double = table.data_ptr() + place, len(sizes), reduction.is_double
                layers_at = at + 8 * (count + 1)
                if reduction.cluster == 0:
                    module.eigvalsh_warp(*on, layers_at, count, is_double)
                    continue
                kind = (reduction.cluster, reduction.placement)
                module.tridiagonalise(*on, layers_at, count, is_double, sizes[0], *kind)
                module.sturm_eigenvalues(*on, at, count, blocks_in_all, is_double, sizes[0])
        del workspaces
    return values


@dataclass(frozen=True, slots=True)
class _EigenWorkspace:
    """Memory of one bin of matrices, and where in it each has its tridiagonal form and its working set."""

    memory: tuple[Tensor, Tensor]
    tridiagonals: list[int]
    storages: list[int]

    @classmethod
    def of(cls, device: _Device, reduction: Reduction, sizes: list[int]) -> _EigenWorkspace:
        module = device.module
        if reduction.cluster == 0:
            none = device.empty(0)
            return cls((none, none), [0] * len(sizes), [0] * len(sizes))
        tridiagonal = device.empty(sum(2 * m + 1 for m in sizes))
        starts = itertools.accumulate((2 * m + 1 for m in sizes[:-1]), initial=0)
        tridiagonals = [tridiagonal.data_ptr() + 8 * start for start in starts]
        if reduction.placement == module.IN_SHARED:
            return cls((tridiagonal, device.empty(0)), tridiagonals, [0] * len(sizes))
        needs = [
            module.tridiagonalise_workspace_bytes(m, reduction.is_double, reduction.cluster) for m in sizes
        ]
        storage = device.empty(sum(needs), dtype=torch.uint8)
        places = itertools.accumulate(needs[:-1], initial=0)
        return cls((tridiagonal, storage), tridiagonals, [storage.data_ptr() + place for place in places])


def pivoted_cholesky(mats: list[Tensor], ranks: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See :func:`slimfast.kernels.ops.grouped_pivoted_cholesky`: (order, factor, residual) of each matrix.

    How many rows were picked decides the shapes, so this waits for the device once.
    """
    with _device_of(mats[0]) as device:
        module = device.module
        _, has_clusters = module.device_limits(device.index)
        picked = device.empty(len(mats), dtype=torch.int64)
        outputs, workspaces = [], []
        bins: dict[tuple[bool, int], list[list[int]]] = {}
        for i, (mat, rank) in enumerate(zip(mats, ranks, strict=True)):
            n, is_double = mat.shape[0], mat.dtype == torch.float64
            # Symmetric, so either order of the indices will do: along rows that are contiguous.
            rows = next((m for m in (mat, mat.T) if m.stride(1) == 1 or n == 1), None)
            rows = mat.contiguous() if rows is None else rows
            order = device.empty(rank, dtype=torch.int64)
            factor, residual = device.empty(rank, n, dtype=mat.dtype), device.empty(rank, dtype=mat.dtype)
            outputs.append((order, factor, residual))
            left, columns = device.empty(n), factor if is_double else device.empty(rank, n)
            workspaces.append((rows, left, columns))
            cluster = 1
            while has_clusters and cluster < module.MAX_CLUSTER and cluster * _PIVOT_ROWS_PER_BLOCK < n:
                cluster *= 2
            layer = [rows.data_ptr(), n, rank, rows.stride(0), left.data_ptr(), columns.data_ptr()]
            layer += [0 if is_double else factor.data_ptr(), residual.data_ptr(), order.data_ptr()]
            bins.setdefault((is_double, cluster), []).append([*layer, picked.data_ptr() + 8 * i])
        tables, plans = Tables(), []
        for kind, layers in bins.items():
            # The largest decide when all are done: they go first.
            layers.sort(key=lambda layer: -layer[1])
            plans.append((kind, tables.add(layers), len(layers)))
        table = device.table(tables.numbers)
        with _side_streams(device, len(plans)) as streams:
            for on, ((is_double, cluster), place, count) in zip(streams, plans, strict=True):
                module.pivoted_cholesky(*on, table.data_ptr() + place, count, is_double, cluster)
        counts = picked.tolist()
    return [
        (order[:r], factor[:r].T, residual[:r])
        for (order, factor, residual), r in zip(outputs, counts, strict=True)
    ]


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    with _device_of(tensors[0]) as device:
        thin, sources = [], []
        indices: dict[int, Tensor] = {id(index): index for keep in keeps for index in keep.values()}
        for tensor, keep in zip(tensors, keeps, strict=True):
            shape = [keep[dim].numel() if dim in keep else size for dim, size in enumerate(tensor.shape)]
            thin.append(device.empty(*shape, dtype=tensor.dtype))
            sources.append(tensor if can_gather(tensor, keep) else tensor.contiguous())
        first_index = len(tensors) + 1 + device.module.GATHER_FIELDS * len(tensors)
        starts = itertools.accumulate((index.numel() for index in indices.values()), initial=first_index)
        place_of = dict(zip(indices, starts, strict=False))
        layers = [
            gather_layer(source, keep, out, {dim: place_of[id(index)] for dim, index in keep.items()})
            for source, keep, out in zip(sources, keeps, thin, strict=True)
        ]
        # The units of a result are its bytes over the bytes of a unit.
        tiles = [
            -(-out.nbytes // (layer[2] * device.module.GATHER_TILE))
            for out, layer in zip(thin, layers, strict=True)
        ]
        tables = Tables()
        tables.add(layers, tiles)
        table = device.table(tables.numbers, *indices.values())
        device.module.gather(*device.on, table.data_ptr(), len(tensors), sum(tiles))
    return thin
