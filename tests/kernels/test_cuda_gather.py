"""The CUDA gather against index_select, and the numbers of the table that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
from support.gather_cases import gather_cases
from torch import Tensor

from slimfast.kernels import ops


def test_gather_equals_index_select(device: str) -> None:
    tensors = [tensor.to(device) for tensor, _ in gather_cases()]
    keeps = [keep for _, keep in gather_cases()]
    ours = ops.grouped_gather(tensors, keeps, backend="cuda")
    for i, (tensor, keep, thin) in enumerate(zip(tensors, keeps, ours, strict=True)):
        expected = tensor
        for dim, index in keep.items():
            expected = expected.index_select(dim, index.to(device))
        assert thin.is_contiguous(), i
        assert thin.dtype == expected.dtype, i
        assert torch.equal(thin, expected), i


def fields_of(module: ModuleType, tensor: Tensor, keep: Mapping[int, Tensor]) -> list[int]:
    """The table's row for one tensor, without its starts."""
    shape, kept = list(tensor.shape), [-1] * tensor.ndim
    for number, (dim, index) in enumerate(keep.items()):
        shape[dim], kept[dim] = len(index), number
    dims = list(zip(shape, tensor.stride(), kept, strict=True))
    layer = (tensor.data_ptr(), 0, tensor.element_size(), dims)
    table = module.GatherTable([layer], [(index.data_ptr(), len(index)) for index in keep.values()])
    numbers = torch.empty(len(table), dtype=torch.int64)
    table.write(numbers.data_ptr())
    assert numbers[1] == table.tiles
    return numbers[table.count + 1 :].tolist()


def test_gather_moves_sixteen_bytes_where_rows_allow(emulator: ModuleType) -> None:
    x = torch.zeros(8, 16, 4)
    # A run of indices is an offset; these are none.
    index = torch.tensor([0, 3])

    def unit_bytes(tensor: Tensor, keep: Mapping[int, Tensor]) -> int:
        return fields_of(emulator, tensor, keep)[emulator.GATHER_UNIT_BYTES]

    assert unit_bytes(x, {0: index}) == 16
    assert unit_bytes(x[:, :, :2], {0: index}) == 8
    assert unit_bytes(x[:, :, 1:], {0: index}) == 4
    assert unit_bytes(x, {2: index}) == 4
    assert unit_bytes(x, {2: torch.tensor([0, 1])}) == 8
    assert unit_bytes(x.half(), {1: index}) == 8


@pytest.mark.parametrize("d", [2, 3, 5, 7, 9, 64, 100, 127, 2**20 + 1, 2**27 + 5])
def test_division_by_multiplication(emulator: ModuleType, d: int) -> None:
    # Dims that do not merge: [3, d] are both columns where d is short, else d is the last of the rows.
    sizes, strides, place = ((3, d), (9 * d, 2), 2) if d < 128 else ((3, d, 2, 2), (99 * d, 50, 9, 2), 1)
    x = torch.empty_strided(sizes, strides, device="meta")
    packed = fields_of(emulator, x, {})[emulator.GATHER_DIVISORS + place]
    multiplier, shift = packed & 0xFFFFFFFF, packed >> 32
    for n in (0, 1, d - 1, d, d + 1, 2 * d - 1, 1000 * d + 1, 2**31 - 1, 2**31 - 2):
        assert (((n * multiplier) >> 32) + n) >> shift == n // d


def test_gather_of_more_rows_than_31_bits_count_is_cut(emulator: ModuleType) -> None:
    # Nothing is read: the sizes and places of the parts are what is looked at.
    count = emulator.GATHER_FIELDS
    index = torch.tensor([0, 2, 5])
    length = 2**31
    dims = [(3, 7 * length, 0), (length, 7, -1)]
    table = emulator.GatherTable([(0, 0, 1, dims)], [(index.data_ptr(), 3)])
    numbers = torch.empty(len(table), dtype=torch.int64)
    table.write(numbers.data_ptr())
    entries = numbers[table.count + 1 : table.count + 1 + table.count * count].view(table.count, count)
    sizes = entries[:, emulator.GATHER_ROWS] * entries[:, emulator.GATHER_COLUMNS]
    assert table.count > 1
    assert int(sizes.max()) < 2**31
    assert entries[:, emulator.GATHER_TARGET].tolist() == [0, *sizes.cumsum(0)[:-1].tolist()]
    assert int(sizes.sum()) == 3 * length
