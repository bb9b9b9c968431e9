"""The CUDA eigvalsh against float64, on the CPU through the emulation and on a GPU where there is one."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import kernels_cases as cases
from support.cuda_fixtures import SHARED_BYTES, assert_independent_of_the_order, barriers_not_needed
from torch import Tensor

from slimfast.kernels import ops
from slimfast.kernels.backends.cuda import eigvalsh_stages
from slimfast.kernels.backends.cuda.tables import Chase, Reduction, chase_of, reduction_of

SINGLE_DOUBLE = (torch.float32, torch.float64)


def worst_error(values: list[Tensor], exact: list[Tensor]) -> float:
    """Over a group, the largest error relative to the matrix's largest eigenvalue."""
    errors = [
        (v.double() - e).abs().max().item() / max(e.abs().max().item(), 1e-300)
        for v, e in zip(values, exact, strict=True)
    ]
    return max(errors)


def assert_eigenvalues(mats: list[Tensor], device: str) -> None:
    """The group's largest error, and in float32 that of the sums, is at most twice PyTorch's.

    PyTorch's is the worse one of each matrix as it is and with its rows and columns reversed, which changes
    no eigenvalue: one of the two may be lucky, by a factor that depends on the number of threads. For
    float64 there is nothing better to compare with than PyTorch itself, whose error is then the difference.
    """
    on_device = ops.grouped_eigvalsh([mat.to(device) for mat in mats], backend="cuda")
    ours = [values.cpu() for values in on_device]
    exact = [torch.linalg.eigvalsh(mat.double()) for mat in mats]
    torchs = [[torch.linalg.eigvalsh(m) for m in ms] for ms in (mats, [m.flip(0, 1) for m in mats])]
    unit = torch.finfo(mats[0].dtype).eps
    assert worst_error(ours, exact) <= 2 * max(unit, *(worst_error(values, exact) for values in torchs))
    assert all(v.dtype == m.dtype and bool((v[1:] >= v[:-1]).all()) for v, m in zip(ours, mats, strict=True))
    if mats[0].dtype == torch.float32:
        ours, exact, *torchs = [[v.double().cumsum(0) for v in vs] for vs in (ours, exact, *torchs)]
        assert worst_error(ours, exact) <= 2 * max(unit, *(worst_error(values, exact) for values in torchs))


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_eigenvalues_at_every_small_size(device: str, dtype: torch.dtype) -> None:
    assert_eigenvalues([cases.wishart(m).to(dtype) for m in cases.SMALL_SIZES], device)


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
@pytest.mark.parametrize("m", [3, 29, 37, 70])
def test_eigenvalues_of_every_kind_of_matrix(device: str, m: int, dtype: torch.dtype) -> None:
    assert_eigenvalues([make(m).to(dtype) for make in cases.SYMMETRIC.values()], device)


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
@pytest.mark.parametrize("m", [129, 257])
def test_eigenvalues_of_a_group_of_larger_ones(device: str, m: int, dtype: torch.dtype) -> None:
    kinds = (cases.wishart, cases.layer_like, cases.repeated, cases.graded, cases.rank_one)
    assert_eigenvalues([make(m).to(dtype) for make in kinds], device)


# --- the switches of kernels


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_eigenvalues_around_every_switch_of_kernel(emulator: ModuleType, dtype: torch.dtype) -> None:
    is_double, limits = dtype == torch.float64, (SHARED_BYTES, True)
    kinds = [reduction_of(emulator, m, is_double, limits) for m in range(1, 514 if is_double else 450)]
    switches = [m for m in range(1, len(kinds)) if kinds[m - 1] != kinds[m]]
    met = [(kind.stages, kind.cluster) for kind in (kinds[m] for m in (0, *switches))]
    assert met == [(0, 1), (1, 1), (1, 2), (2, 1), *([(2, 2)] if is_double else [])]
    assert_eigenvalues([cases.layer_like(m + more).to(dtype) for m in switches for more in (0, 1)], "cpu")


def test_one_block_reaches_320_and_two_stages_begin_below_512_on_sm_90(emulator: ModuleType) -> None:
    limits = (SHARED_BYTES, True)
    assert reduction_of(emulator, 320, False, limits) == Reduction(False, 1, 1)
    assert reduction_of(emulator, 512, False, limits) == Reduction(False, 2, 1)
    # The panels' rows are in the registers of as many blocks as they need, up to eight.
    clusters = [reduction_of(emulator, m, False, limits).cluster for m in (1024, 1025, 2049, 4097, 20000)]
    assert clusters == [1, 2, 4, 8, 8]


@pytest.mark.parametrize("shared_bytes", [163 << 10, 99 << 10])
def test_eigenvalues_on_a_device_without_clusters(emulator: ModuleType, shared_bytes: int) -> None:
    emulator.set_device(shared_bytes, False)
    limits = (shared_bytes, False)
    first = next(m for m in range(33, 400) if reduction_of(emulator, m, True, limits).stages == 2)
    assert_eigenvalues([cases.wishart(m) for m in (40, first - 1, first)], "cpu")


# --- two stages


@pytest.fixture
def in_two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages at every size, and two blocks to a panel: what switches within them then does so early."""
    monkeypatch.setattr(
        eigvalsh_stages, "reduction_of", lambda _, size, is_double, limits: Reduction(is_double, 2, 2)
    )


@pytest.mark.usefixtures("in_two_stages")
@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_two_stages_at_sizes_around_panels_and_tiles(device: str, dtype: torch.dtype) -> None:
    # A panel is 32 wide; what follows it is cut into tiles of 64 (32 in float64) and super tiles of 128.
    sizes = (1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 95, 96, 97, 127, 129, 160, 161, 193)
    assert_eigenvalues([cases.layer_like(m).to(dtype) for m in sizes], device)


@pytest.mark.usefixtures("in_two_stages")
@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_two_stages_of_every_kind_of_matrix(device: str, dtype: torch.dtype) -> None:
    assert_eigenvalues([make(97).to(dtype) for make in cases.SYMMETRIC.values()], device)


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_eigenvalues_of_hostile_spectra_at_a_size_of_two_stages(device: str, dtype: torch.dtype) -> None:
    kinds = (cases.rank_one, cases.repeated, cases.graded)
    assert_eigenvalues([make(450 if dtype == torch.float32 else 300).to(dtype) for make in kinds], device)


@pytest.mark.usefixtures("in_two_stages")
def test_two_stages_see_entries_far_below_their_column_s_first(device: str) -> None:
    # The squares of a column's rest vanish beside that of its first entry, and are not zero all the same.
    assert_eigenvalues([(torch.eye(70).double() + 1e-5 * cases.indefinite(70)).float()], device)


def test_two_stages_do_not_depend_on_the_other_matrices(emulator: ModuleType) -> None:
    # Without clusters the panels of the larger one do not fit into registers.
    emulator.set_device(SHARED_BYTES, False)
    small, large = cases.layer_like(300), cases.wishart(520)
    assert emulator.panel_rows(True) == 512
    together = ops.grouped_eigvalsh([small, large], backend="cuda")
    (alone,) = ops.grouped_eigvalsh([small], backend="cuda")
    assert torch.equal(together[0], alone)
    error = (together[1] - torch.linalg.eigvalsh(large)).abs().max().item()
    assert error <= 2 * 520**0.5 * torch.finfo(torch.float64).eps * together[1][-1].item()


@pytest.mark.usefixtures("in_two_stages")
@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_any_number_of_blocks_chases_to_the_same_bits(
    emulator: ModuleType, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer sweeps than warps, more of them, and none at all.
    mats = [cases.layer_like(m).to(dtype) for m in (230, 70, 3, 2, 1)]
    found = []
    for shape in (Chase(1, 1), Chase(1, 8), Chase(2, 1), Chase(2, 3), Chase(8, 2)):
        monkeypatch.setattr(eigvalsh_stages, "chase_of", lambda *_, shape=shape: shape)
        found.append(ops.grouped_eigvalsh(mats, backend="cuda"))
        assert all(map(torch.equal, found[0], found[-1])), shape


def test_few_large_matrices_are_chased_by_clusters_and_many_by_a_block_each(emulator: ModuleType) -> None:
    h100 = (True, 132)
    # No more warps than have something to do: a sweep starts two hops of 32 rows behind the one before.
    assert chase_of(emulator, [450], False, h100) == Chase(1, 7)
    assert chase_of(emulator, [1024], False, h100) == Chase(4, 4)
    assert chase_of(emulator, [4096], False, h100) == Chase(8, 8)
    assert chase_of(emulator, [2048] * 132, False, h100) == Chase(1, 16)
    assert chase_of(emulator, [1024] * 97, False, h100) == Chase(1, 16)
    # A decoder's: 160 would leave most of the device idle in their second turn.
    assert chase_of(emulator, [4096] * 160, False, h100) == Chase(4, 16)
    assert chase_of(emulator, [4096], False, (False, 108)) == Chase(1, 16)
    assert chase_of(emulator, [4096], True, h100) == Chase(8, 8)
    assert chase_of(emulator, [3], False, h100) == Chase(1, 1)


# --- input


def test_eigenvalues_read_only_the_lower_triangle_of_any_strides(device: str) -> None:
    for m in (20, 50):
        mat = cases.with_spectrum(torch.arange(m))
        expected = ops.grouped_eigvalsh([mat.to(device)], backend="cuda")[0]
        spaced = torch.full((2 * m, 3 * m), float("nan"), dtype=torch.float64, device=device)[::2, ::3]
        spaced.copy_(mat.tril() + torch.full((m, m), float("nan")).double().triu(1))
        assert torch.equal(ops.grouped_eigvalsh([spaced], backend="cuda")[0], expected)
        assert torch.equal(ops.grouped_eigvalsh([mat.to(device).T], backend="cuda")[0], expected)


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
@pytest.mark.parametrize("m", [5, 40])
def test_eigenvalues_of_a_stack_are_those_of_its_matrices(device: str, m: int, dtype: torch.dtype) -> None:
    mats = [make(m).to(device, dtype) for make in (cases.wishart, cases.layer_like, cases.graded)]
    expected = torch.stack(ops.grouped_eigvalsh(mats, backend="cuda"))
    # To the last bit symmetric, so that either triangle says the same.
    stack = torch.stack(mats).tril()
    stack += stack.tril(-1).mT
    spaced = torch.full((6, 2 * m, m), float("nan"), dtype=dtype, device=device)[::2, ::2]
    spaced.copy_(stack)
    for layout in (stack, stack.mT, spaced):
        assert torch.equal(ops.grouped_eigvalsh(layout, backend="cuda"), expected)
    same = ops.grouped_eigvalsh(stack[1].expand(3, m, m), backend="cuda")
    assert torch.equal(same, expected[1].expand(3, m))


def test_a_stack_is_not_looked_at_one_by_one(emulator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = cases.wishart(4).expand(50, 4, 4)
    calls = []
    data_ptr = Tensor.data_ptr
    monkeypatch.setattr(Tensor, "data_ptr", lambda x: calls.append(x) or data_ptr(x))
    ops.grouped_eigvalsh(stack, backend="cuda")
    assert len(calls) < 10


@pytest.mark.parametrize("scale", [1e300, 1e-300, 5e-324])
def test_eigenvalues_at_the_ends_of_float64(device: str, scale: float) -> None:
    mats = [cases.wishart(m) * scale for m in (10, 40)]
    for mat, values in zip(
        mats, ops.grouped_eigvalsh([m.to(device) for m in mats], backend="cuda"), strict=True
    ):
        # Ten digits are left of what float64 can hold there; LAPACK gets the matrix brought to 1.
        shift = 2.0**40 if scale < 1 else 2.0**-40
        exact = torch.linalg.eigvalsh(mat * shift * shift if scale == 1e-300 else mat)
        exact = exact / shift / shift if scale == 1e-300 else exact
        assert torch.allclose(values.cpu(), exact, rtol=0, atol=1e-14 * exact.abs().max().item() + 5e-324)


@pytest.mark.parametrize("m", [7, 45])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_eigenvalues_name_a_matrix_that_is_not_finite(device: str, m: int, bad: float) -> None:
    mats = [cases.wishart(m), cases.wishart(m)]
    mats[1][m - 1, 0] = bad
    with pytest.raises(ValueError, match="second"):
        ops.grouped_eigvalsh([mat.to(device) for mat in mats], names=["first", "second"], backend="cuda")


# --- the order of threads, and barriers


def run_one_stage(emulator: ModuleType) -> list[Tensor]:
    # A warp, one block and two blocks.
    emulator.set_device(20 << 10, True)
    return ops.grouped_eigvalsh([cases.layer_like(m) for m in (32, 40, 50)], backend="cuda")


def run_two_stages(_: ModuleType) -> list[Tensor]:
    # Super tiles beside the diagonal, which 161 rows have first; the bulges chased by a block and by two.
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for shape in (Chase(1, 3), Chase(2, 2)):
            patch.setattr(eigvalsh_stages, "chase_of", lambda *_, shape=shape: shape)
            found += ops.grouped_eigvalsh([cases.layer_like(161)], backend="cuda")
    return found


def test_one_stage_does_not_depend_on_the_order_of_threads(emulator: ModuleType) -> None:
    assert_independent_of_the_order(emulator, run_one_stage)


@pytest.mark.usefixtures("in_two_stages")
def test_two_stages_do_not_depend_on_the_order_of_threads(emulator: ModuleType) -> None:
    assert_independent_of_the_order(emulator, run_two_stages)


def test_every_barrier_of_one_stage_is_needed_and_a_missing_one_is_seen(emulator: ModuleType) -> None:
    assert barriers_not_needed(emulator, run_one_stage) == []


@pytest.mark.usefixtures("in_two_stages")
def test_every_barrier_of_two_stages_is_needed_and_a_missing_one_is_seen(emulator: ModuleType) -> None:
    assert barriers_not_needed(emulator, run_two_stages) == []
