"""The CUDA kernels against float64: on the CPU through the emulation, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType

import numpy as np
import pytest
import torch
from support import kernels_cases as cases
from support.cuda_fixtures import SHARED_BYTES, assert_independent_of_the_order, barriers_not_needed
from torch import Tensor

from slimfast.kernels import dispatch, native, ops

SINGLE_DOUBLE = (torch.float32, torch.float64)


def plain_covariance(x: Tensor) -> Tensor:
    """What a PyTorch user writes, in x's own dtype, for the smaller side."""
    centred = x - x.mean(1, keepdim=True)
    left = centred if x.shape[0] <= x.shape[1] else centred.T
    return left @ left.T / max(x.shape[1] - 1, 1)


def exact_covariance(x: Tensor, by_rows: bool) -> Tensor:
    """In float64 for the shorter types, in the machine's extended precision for float64; (m, m) float64."""
    wide = x.double().numpy().astype(np.longdouble if x.dtype == torch.float64 else np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    left = centred if by_rows else centred.T
    return torch.from_numpy((left @ left.T / max(x.shape[1] - 1, 1)).astype(np.float64))


# --- covariance


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_covariance_of_every_shape_and_layout(device: str, dtype: torch.dtype) -> None:
    for n, d in cases.SHAPES:
        # Beyond float64 only the machine's extended precision knows better, slowly.
        if dtype == torch.float64 and n * d * min(n, d) > 3_000_000:
            continue
        x = (cases.normal(n, d) + 0.5).to(dtype)
        layouts = cases.layouts(x) if n * d < 10_000 else {"contiguous": x, "transposed": x.T.contiguous().T}
        layouts.pop("broadcast_columns", None)
        xs = [layout.to(device) for layout in layouts.values()]
        ours = ops.grouped_covariance(xs, backend="cuda")
        for name, layout, matrix, trace in zip(layouts, xs, ours.matrices, ours.traces.tolist(), strict=True):
            host = layout.cpu()
            exact = exact_covariance(host, n <= d)
            cases.assert_as_accurate_as_torch(matrix.cpu(), plain_covariance(host), exact)
            assert torch.equal(matrix, matrix.T), (n, d, name)
            # The trace is float64 whatever the dtype: means and squares are.
            expected = plain_covariance(host.double()).trace().item()
            assert trace == pytest.approx(expected, rel=1e-13, abs=1e-26), (n, d, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_covariance_reads_sixteen_bit_inputs_exactly(device: str, dtype: torch.dtype) -> None:
    xs = [cases.normal(n, d, dtype=dtype) for n, d in ((3, 5), (64, 576), (130, 33), (17, 2000))]
    xs[0].view(-1)[:3] = torch.tensor([6e-8, -0.0, 1e-39], dtype=dtype)
    for result in (torch.float32, torch.float64):
        on = [x.to(device) for x in xs]
        ours = ops.grouped_covariance(on, dtype=result, backend="cuda").matrices
        for x, matrix in zip(xs, ours, strict=True):
            exact = exact_covariance(x, x.shape[0] <= x.shape[1])
            cases.assert_as_accurate_as_torch(matrix.cpu(), plain_covariance(x.to(result)), exact)


def test_covariance_in_float64_on_large_tiles(device: str) -> None:
    # More than one chunk of samples, a diagonal tile and one off it, none of them full.
    x = cases.normal(260, 700)
    for layout in (x, x.T.contiguous().T):
        (ours,), _ = ops.grouped_covariance([layout.to(device)], backend="cuda")
        cases.assert_as_accurate_as_torch(ours.cpu(), plain_covariance(x), exact_covariance(x, True))
        assert torch.equal(ours, ours.T)


def test_covariance_where_a_block_has_little_shared_memory(emulator: ModuleType) -> None:
    emulator.set_device(99 << 10, False)
    x = cases.normal(260, 700)
    (ours, _), _ = ops.grouped_covariance([x, x.float()], backend="cuda")
    cases.assert_as_accurate_as_torch(ours, plain_covariance(x), exact_covariance(x, True))


def test_covariance_with_a_mean_far_above_the_deviations(device: str) -> None:
    x = (cases.normal(40, 300) + 3e4).float()
    (single,), _ = ops.grouped_covariance([x.to(device)], backend="cuda")
    exact = plain_covariance(x.double())
    # The deviations are exact in float32; a mean in float32 alone would be off by 1e-3 of them.
    assert (single.cpu().double() - exact).abs().max() <= 100 * torch.finfo(
        torch.float32
    ).eps * exact.abs().max()


def test_covariance_of_a_layer_does_not_depend_on_the_others(device: str) -> None:
    xs = [cases.normal(n, d).float().to(device) for n, d in ((70, 5000), (300, 40), (20, 9), (300, 700))]
    together = ops.grouped_covariance(xs, backend="cuda").matrices
    for x, matrix in zip(xs, together, strict=True):
        (alone,), _ = ops.grouped_covariance([x], backend="cuda")
        assert torch.equal(matrix, alone)


def test_covariance_names_a_layer_that_is_not_finite(device: str) -> None:
    xs = [cases.normal(40, 50).to(device), cases.normal(33, 70).to(device)]
    xs[1][3, 69] = float("nan")
    with pytest.raises(ValueError, match=r"nan.*second"):
        ops.grouped_covariance(xs, names=["first", "second"], backend="cuda")


# --- pivoted Cholesky


def assert_same_picks(mats: list[Tensor], ranks: list[int], device: str) -> None:
    ours = ops.grouped_pivoted_cholesky([mat.to(device) for mat in mats], ranks, backend="cuda")
    expected = ops.grouped_pivoted_cholesky(mats, ranks, backend="reference")
    for mat, got, want in zip(mats, ours, expected, strict=True):
        eps = torch.finfo(mat.dtype).eps
        assert torch.equal(got.order.cpu(), want.order)
        assert got.factor.shape == want.factor.shape
        scale = mat.diagonal().abs().max().item()
        # Both work in float64 and round once to the result's dtype.
        assert torch.allclose(got.factor.cpu(), want.factor, rtol=0, atol=8 * len(mat) * eps * scale**0.5)
        assert torch.allclose(
            got.residual.cpu(), want.residual, rtol=4 * eps, atol=8 * len(mat) * eps * scale
        )


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
@pytest.mark.parametrize("kind", ["wishart", "layer_like", "huge_scale", "tiny_scale", "block_diagonal"])
def test_picks_equal_the_reference(device: str, kind: str, dtype: torch.dtype) -> None:
    mats = [cases.SYMMETRIC[kind](m).to(dtype) for m in (1, 2, 8, 33, 65, 130)]
    assert_same_picks(mats, [max(1, len(mat) // 2) for mat in mats], device)


def test_picks_of_ties_zeros_and_low_rank(device: str) -> None:
    # Powers of two are exact: equal variances stay equal, and the smallest index must win.
    twins = torch.diag(torch.tensor([1.0, 4.0, 4.0, 2.0, 4.0])).double()
    mats = [torch.eye(40), torch.zeros(9, 9), torch.ones(12, 12), twins, torch.eye(600).double()]
    assert_same_picks(mats, [40, 9, 12, 5, 3], device)
    assert_same_picks([torch.eye(5)], [0], device)


def test_picks_with_several_blocks_to_a_matrix(device: str) -> None:
    x = cases.normal(2100, 30)
    mats = [cases.wishart(600).float(), cases.wishart(513), x @ x.T]
    assert_same_picks(mats, [40, 30, 29], device)


def test_picks_beyond_what_is_staged_at_a_time(device: str) -> None:
    # One block-sized spectrum keeps every pick clear of rounding: the diagonal falls by a factor each row.
    n = 300
    lower = torch.eye(n).double() + 1e-3 * cases.normal(n, n).tril(-1)
    diagonal = torch.linspace(2, 1, n).double()
    assert_same_picks([(lower * diagonal) @ (lower * diagonal).T], [n], device)


# --- gather


def gather_cases() -> list[tuple[Tensor, Mapping[int, Tensor]]]:
    def keep(size: int, every: int, start: int = 0) -> Tensor:
        return torch.arange(start, size, every)

    conv = torch.arange(64 * 32 * 9, dtype=torch.float32).view(64, 32, 3, 3)
    deep = torch.arange(2 * 3 * 4 * 5 * 6 * 7).view(2, 3, 4, 5, 6, 7)
    wide = torch.arange(7 * 4096, dtype=torch.int16).view(7, 4096)
    found: list[tuple[Tensor, Mapping[int, Tensor]]] = [
        (conv, {0: keep(64, 3), 1: keep(32, 2, 1)}),
        (conv, {0: keep(64, 5)}),
        (conv, {1: keep(32, 7)}),
        (conv, {}),
        (conv.to(memory_format=torch.channels_last), {0: keep(64, 3), 1: keep(32, 2)}),
        (conv.transpose(0, 1), {0: keep(32, 3), 1: keep(64, 4)}),
        (conv[1:, 1:, 1:, 1:], {0: keep(63, 2)}),
        (deep, {1: keep(3, 2), 4: keep(6, 2, 1)}),
        (deep.permute(5, 3, 1, 0, 2, 4), {2: keep(3, 2)}),
        (deep.permute(4, 0, 5, 2, 1, 3)[::2, :, 1:], {}),
        (deep, {5: keep(7, 3), 0: keep(2, 1)}),
        (wide, {0: keep(7, 2), 1: keep(4096, 3)}),
        (wide.to(torch.int8), {1: keep(4096, 5, 2)}),
        (wide[:, 1:], {0: keep(7, 3)}),
        (wide.bfloat16(), {0: torch.tensor([6])}),
        (wide.double(), {1: keep(4096, 2)}),
        (wide.to(torch.complex64), {0: keep(7, 2)}),
        (wide > 5, {1: keep(4096, 9)}),
        (torch.tensor(3.5), {}),
        (torch.arange(10.0), {0: torch.tensor([0, 9])}),
        (torch.arange(10.0), {0: torch.empty(0, dtype=torch.int64)}),
        (torch.empty(0, 4), {1: keep(4, 2)}),
        (torch.ones(3, 1).expand(3, 100), {0: keep(3, 2)}),
    ]
    return found


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


# --- the backend


def test_why_not_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "0")
    monkeypatch.setattr(
        native, "cuda", lambda: native.Native(None, "slimfast._cuda does not load: no driver")
    )
    reasons = dispatch.why_not("gather", [torch.zeros(2, dtype=torch.complex128)], "cuda")
    assert "slimfast._cuda does not load: no driver" in reasons
    assert "tensors on cpu, not on a CUDA device" in reasons
    assert "elements of torch.complex128" in reasons


@pytest.mark.parametrize("order", [("_cuda", "_cuda_emulated"), ("_cuda_emulated", "_cuda")])
def test_the_kernels_and_their_emulation_load_into_one_process(order: tuple[str, str]) -> None:
    for name in order:
        if importlib.util.find_spec(f"slimfast.{name}") is None:
            pytest.skip(f"slimfast.{name} is not built")
    code = (
        "import torch, importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(f'slimfast.{name}')"
    )
    done = subprocess.run([sys.executable, "-c", code, *order], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the order of threads, and barriers


def run_covariance(_: ModuleType) -> list[Tensor]:
    shapes = ((70, 1100), (40, 33), (260, 9))
    xs = [cases.normal(n, d).to(dtype) for n, d in shapes for dtype in SINGLE_DOUBLE]
    xs.append(cases.normal(300, 40).T)
    covariances = ops.grouped_covariance(xs, side="rows", backend="cuda")
    return [*covariances.matrices, covariances.traces]


def run_pivoted_cholesky(emulator: ModuleType) -> list[Tensor]:
    # More picks than are staged at a time; two blocks to the larger matrix, then one in two turns of rows.
    mats = [cases.wishart(140), cases.wishart(520).float()]
    parts = []
    for clusters in (True, False):
        emulator.set_device(SHARED_BYTES, clusters)
        picks = ops.grouped_pivoted_cholesky(mats, [140, 6], backend="cuda")
        parts += [part for pick in picks for part in pick]
    return parts


def run_gather(_: ModuleType) -> list[Tensor]:
    tensors = [tensor for tensor, _ in gather_cases()]
    return ops.grouped_gather(tensors, [keep for _, keep in gather_cases()], backend="cuda")


RUNS = {run.__name__: run for run in (run_covariance, run_pivoted_cholesky, run_gather)}


@pytest.mark.parametrize("op", RUNS)
def test_results_do_not_depend_on_the_order_of_threads(emulator: ModuleType, op: str) -> None:
    assert_independent_of_the_order(emulator, RUNS[op])


@pytest.mark.parametrize("op", RUNS)
def test_every_barrier_is_needed_and_a_missing_one_is_seen(emulator: ModuleType, op: str) -> None:
    assert barriers_not_needed(emulator, RUNS[op]) == []
