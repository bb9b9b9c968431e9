"""grouped_gather: bit for bit what index_select gives, for any dims, strides and element size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimfast.kernels.ops import grouped_gather

BACKENDS = ("reference", "cpu")
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64),
)


def selected(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index)
    return tensor.contiguous()


def every_other(size: int) -> Tensor:
    return torch.arange(0, size, 2)


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).remainder(251).reshape(shape).to(dtype)


def assert_equal_selection(tensors: list[Tensor], keeps: list[dict[int, Tensor]], backend: str) -> None:
    before = [t.clone() for t in tensors]
    for t, keep, ours, old in zip(
        tensors, keeps, grouped_gather(tensors, keeps, backend=backend), before, strict=True
    ):
        expected = selected(t, keep)
        assert ours.dtype == t.dtype
        assert ours.is_contiguous()
        assert ours.shape == expected.shape
        assert torch.equal(ours, expected)
        assert torch.equal(t, old)
        assert t.numel() == 0 or ours.numel() == 0 or ours.data_ptr() != t.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_dims_of_a_network_in_one_call(dtype: torch.dtype, backend: str) -> None:
    shapes = [(64, 3, 7, 7), (32, 64, 3, 3), (128, 64, 1, 1), (10, 128), (48, 33), (16, 1, 5, 5)]
    tensors = [numbered(*shape, dtype=dtype) for shape in shapes] + [numbered(65, dtype=dtype)]
    keeps = [{0: every_other(t.shape[0]), 1: every_other(t.shape[1])} for t in tensors[:-1]]
    assert_equal_selection(tensors, [*keeps, {0: torch.tensor([0, 1, 2, 9, 64])}], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    base = numbered(12, 10, 6, 4)
    tensors = [
        base.permute(3, 1, 0, 2),
        base[1::2, ::3, 2:, 1:3],
        base.to(memory_format=torch.channels_last),
        base[:, :1].expand(12, 10, 6, 4),
        base.flatten()[5:].unfold(0, 7, 3),
        base.as_strided((5, 5), (1, 2), 3),
        torch.tensor(3.0),
        base[:0],
    ]
    for a in range(4):
        keeps: list[dict[int, Tensor]] = []
        for t in tensors:
            dims = sorted({a % t.ndim, (a + 1) % t.ndim}) if t.ndim else []
            keeps.append({dim: every_other(t.shape[dim]) for dim in dims})
        assert_equal_selection(tensors, keeps, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_whole_selections(backend: str) -> None:
    t = numbered(6, 5, 3)
    none = torch.empty(0, dtype=torch.int64)
    keeps = [
        {},
        {0: none},
        {1: none, 2: none},
        {0: torch.arange(6), 2: torch.arange(3)},
        {1: torch.tensor([4])},
    ]
    assert_equal_selection([t] * len(keeps), keeps, backend)
    assert grouped_gather([], [], backend=backend) == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_tensors_larger_than_a_work_item(dtype: torch.dtype) -> None:
    tensors = [numbered(*s, dtype=dtype) for s in ((700, 900), (900, 300, 3, 3), (3, 400_001), (1_000_001,))]
    odd = torch.arange(1, 300, 2)
    keeps = [{1: torch.arange(0, 900, 3)}, {0: every_other(900), 1: odd}, {0: torch.tensor([0, 2])}, {}]
    assert_equal_selection(tensors, keeps, "cpu")


@pytest.mark.parametrize("length", [*range(1, 36), 63, 64, 65, 127, 130, 255, 511, 512, 513, 1025])
def test_every_length_of_a_run_of_bytes(length: int) -> None:
    # Guard bytes around the source would show a run read or written from the wrong place.
    tensor = numbered(9, length + 3, dtype=torch.uint8)[:, 1 : length + 1]
    assert_equal_selection([tensor], [{0: torch.tensor([0, 2, 3, 8])}], "cpu")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_order_of_dims_and_selection(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=5), label="shape")
    order = data.draw(st.permutations(range(len(shape))), label="order")
    step = data.draw(st.integers(1, 2), label="step")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    tensor = numbered(*(s * step for s in shape), dtype=dtype)[tuple(slice(0, None, step) for _ in shape)]
    tensor = tensor.permute(*order)
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), max_size=2, unique=True), label="dims")
    keep = {}
    for dim in dims:
        chosen = data.draw(st.lists(st.booleans(), min_size=tensor.shape[dim], max_size=tensor.shape[dim]))
        keep[dim] = torch.tensor(chosen).nonzero()[:, 0]
    (ours,) = grouped_gather([tensor], [keep], backend="cpu")
    assert torch.equal(ours, selected(tensor, keep))


@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_indices_name_their_tensor() -> None:
    t = numbered(4, 5, 6)
    for keep, message in (
        ({3: torch.tensor([0])}, r"expected a dim in 0\.\.2, got 3 \(w\)"),
        ({0: torch.tensor([0, 4])}, r"distinct indices in 0\.\.3, got 0\.\.4 \(w, dim 0\)"),
        ({1: torch.tensor([-1, 2])}, r"in 0\.\.4, got -1\.\.2 \(w, dim 1\)"),
        ({1: torch.tensor([2, 1])}, r"sorted, distinct indices in 0\.\.4, got 2\.\.1 \(w, dim 1\)"),
        ({1: torch.tensor([1, 1])}, r"sorted, distinct .*\(w, dim 1\)"),
        ({0: torch.tensor([0.0])}, r"int64 indices on the CPU, got torch.float32 .*\(w, dim 0\)"),
        ({d: torch.tensor([0]) for d in range(3)}, r"at most two dims, got \[0, 1, 2\] \(w\)"),
    ):
        with pytest.raises(ValueError, match=message):
            grouped_gather([t], [keep], names=["w"])
    with pytest.raises(ValueError, match="expected 1 keeps, got 0"):
        grouped_gather([t], [])
