"""What the CUDA eigenvalue kernels are told: which matrices go which way, their workspaces and tables.

Thousands of small matrices come here, each of which the kernels are done with in less than a microsecond: all
of it is arithmetic on arrays with one entry a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.backends.cuda.device import Device, side_streams
from slimfast.kernels.backends.cuda.tables import Reduction, Tables, chase_of, reduction_of


@dataclass(frozen=True, slots=True)
class Matrices:
    """Where the matrices are and where their eigenvalues go; ``is_double`` 1 for float64 and 0 for float32.

    ``places`` (b, 4): address, m, the strides of rows and columns in elements.
    """

    places: IntArray
    outs: IntArray
    is_double: IntArray


@dataclass(frozen=True, slots=True)
class _Bin:
    """Matrices of these sizes that go one way: where their table is, and its grid's blocks."""

    reduction: Reduction
    place: int
    sizes: list[int]
    blocks: int


def listed(mats: Sequence[Tensor], values: Sequence[Tensor]) -> Matrices:
    """Describe matrices (m_i, m_i), and a vector for the eigenvalues of each."""
    places = np.array([(mat.data_ptr(), mat.shape[0], *mat.stride()) for mat in mats], dtype=np.int64)
    outs = np.array([value.data_ptr() for value in values], dtype=np.int64)
    return Matrices(places, outs, np.array([mat.dtype == torch.float64 for mat in mats], dtype=np.int64))


def stacked(mats: Tensor, values: Tensor) -> Matrices:
    """Describe a stack (b, m, m), and (b, m) for the eigenvalues."""
    count, m, _ = mats.shape
    number = np.arange(count, dtype=np.int64)
    places = np.empty((count, 4), dtype=np.int64)
    places[:, 0] = mats.data_ptr() + number * (mats.stride(0) * mats.element_size())
    places[:, 1:] = (m, *mats.stride()[1:])
    outs = values.data_ptr() + number * (m * values.element_size())
    return Matrices(places, outs, np.full(count, mats.dtype == torch.float64, dtype=np.int64))


def prepare(device: Device, matrices: Matrices) -> Callable[[Device], None]:
    """Make what launches the kernels, with the workspaces and the table that they need."""
    tables, bins = Tables(), []
    workspaces = []
    for reduction, members in _ways(device, matrices):
        sizes = matrices.places[members, 1]
        memory, tridiagonals, storages = _workspace(device, reduction, sizes)
        workspaces.append(memory)
        layers = [matrices.places[members], tridiagonals, storages, matrices.outs[members]]
        blocks = -(-sizes // device.module.STURM_VALUES)
        place = tables.add(np.column_stack(layers), blocks)
        bins.append(_Bin(reduction, place, sizes.tolist(), int(blocks.sum())))
    table = device.table(tables.numbers)

    def launch(device: Device) -> None:
        # The workspaces live as long as this function; the current stream waits for the side streams.
        with side_streams(device, len(workspaces)) as streams:
            for on, one in zip(streams, bins, strict=True):
                _launch(device, on, table.data_ptr() + one.place, one)

    return launch


def _ways(device: Device, matrices: Matrices) -> list[tuple[Reduction, IntArray]]:
    """Sort the indices of the matrices by the way they go, the largest first: they decide when all are
    done.
    """
    limits = device.module.device_limits(device.index)
    sizes = matrices.places[:, 1]
    kinds, kind_of = np.unique(2 * sizes + matrices.is_double, return_inverse=True)
    ways: dict[Reduction, list[int]] = {}
    for number in range(len(kinds) - 1, -1, -1):
        size, is_double = divmod(int(kinds[number]), 2)
        way = reduction_of(device.module, size, bool(is_double), limits)
        ways.setdefault(way, []).append(number)
    found = []
    for way, numbers in ways.items():
        members = np.flatnonzero(np.isin(kind_of, numbers))
        found.append((way, members[np.argsort(-sizes[members], kind="stable")]))
    return found


def _workspace(
    device: Device, reduction: Reduction, sizes: IntArray
) -> tuple[tuple[Tensor, ...], IntArray, IntArray]:
    """Allocate the memory of one bin's matrices, and say where in it each has its tridiagonal form and its
    working set.
    """
    none = np.zeros_like(sizes)
    if reduction.stages == 0:
        return (), none, none
    lengths = 2 * sizes + 1
    tridiagonal = device.empty(int(lengths.sum()))
    tridiagonals = tridiagonal.data_ptr() + 8 * _starts(lengths)
    if reduction.stages == 1:
        return (tridiagonal,), tridiagonals, none
    kinds, kind_of = np.unique(sizes, return_inverse=True)
    each = [device.module.band_workspace_bytes(int(m), reduction.is_double) for m in kinds]
    needs = np.array(each, dtype=np.int64)[kind_of]
    storage = device.empty(int(needs.sum()), dtype=torch.uint8)
    return (tridiagonal, storage), tridiagonals, storage.data_ptr() + _starts(needs)


def _starts(lengths: IntArray) -> IntArray:
    starts: IntArray = np.cumsum(lengths) - lengths
    return starts


def _launch(device: Device, on: tuple[int, int], at: int, one: _Bin) -> None:
    """Launch the kernels of one bin, whose table is at this address, on one stream."""
    module, reduction, count = device.module, one.reduction, len(one.sizes)
    is_double, layers_at = reduction.is_double, at + 8 * (count + 1)
    if reduction.stages == 0:
        module.eigvalsh_warp(*on, layers_at, count, is_double)
        return
    if reduction.stages == 1:
        module.tridiagonalise(*on, layers_at, count, is_double, one.sizes[0], reduction.cluster)
    else:
        module.reduce_to_band(*on, layers_at, one.sizes, is_double, reduction.cluster)
        _, has_clusters = module.device_limits(device.index)
        chase = chase_of(module, one.sizes, is_double, (has_clusters, device.processors))
        module.chase_bulges(*on, layers_at, count, is_double, *chase)
    module.sturm_eigenvalues(*on, at, count, one.blocks, is_double, one.sizes[0])
