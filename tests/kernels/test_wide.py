"""The AVX-512 text on a machine without it: 64-byte vectors and tiles for 32 registers, lowered.

The arithmetic, the order of every sum and the switches between paths are those of the real build; what is
not tested here is the compiler's choice of instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import scipy.linalg
import torch
from support import kernels_cases as cases
from support.covariances import JOINT, exact_covariance, plain_covariance
from support.cpu_fixtures import emulated_isas
from support.eigenvalues import assert_group_as_accurate, torch_and_float64

from slimfast.kernels import ops

DTYPES = (torch.float32, torch.float64)
Threads = Callable[[int], AbstractContextManager[None]]

pytestmark = pytest.mark.usefixtures("lowered")


def test_the_emulated_module_has_what_no_machine_here_need_have() -> None:
    assert "avx512" in emulated_isas()


# --- covariance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*cases.SHAPES, (47, 50), (49, 130), (769, 40), (400, 390)])
def test_covariance(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, d = shape
    layouts = cases.layouts((cases.normal(n, d) + 0.5).to(dtype))
    xs = [layouts[name] for name in ("contiguous", "transposed", "spaced")]
    exact = exact_covariance(xs[0], n <= d)
    found = ops.grouped_covariance(xs, backend="cpu")
    for x, ours, trace in zip(xs, found.matrices, found.traces.tolist(), strict=True):
        cases.assert_as_accurate_as_torch(ours, plain_covariance(x, n <= d), exact)
        assert torch.equal(ours, ours.T)
        assert trace == pytest.approx(exact.trace().item(), rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "columns"), JOINT)
def test_covariance_of_members(n: int, columns: tuple[int, ...], dtype: torch.dtype) -> None:
    members = [(cases.normal(n, d) + 3 * i).to(dtype) for i, d in enumerate(columns)]
    (ours,), _ = ops.grouped_covariance([members], backend="cpu")
    wide = torch.cat([x.double() - x.double().mean(1, keepdim=True) for x in members], 1)
    same = torch.cat([x - x.mean(1, keepdim=True) for x in members], 1)
    exact = exact_covariance(wide - wide.mean(1, keepdim=True), True, extended=True)
    cases.assert_as_accurate_as_torch(ours, same @ same.T / max(sum(columns) - 1, 1), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 300), (300, 40)])
def test_covariance_of_a_mean_far_above_the_deviations(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = (cases.normal(*shape) + 3e4).to(dtype)
    (ours,), _ = ops.grouped_covariance([x], backend="cpu")
    exact = exact_covariance(x, shape[0] <= shape[1])
    assert (ours.double() - exact).abs().max() <= 100 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (64, 576), (130, 33), (17, 4000)])
def test_covariance_reads_sixteen_bits_exactly(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = cases.normal(*shape, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([6e-8, -0.0, 1e-39], dtype=dtype)
    by_rows = shape[0] <= shape[1]
    exact = exact_covariance(x, by_rows, extended=True)
    for layout in (x, x.T.contiguous().T):
        (single,), _ = ops.grouped_covariance([layout], backend="cpu")
        (double,), _ = ops.grouped_covariance([layout], dtype=torch.float64, backend="cpu")
        cases.assert_as_accurate_as_torch(single, plain_covariance(x.float(), by_rows), exact)
        cases.assert_as_accurate_as_torch(double, plain_covariance(x.double(), by_rows), exact)


# --- eigvalsh


# Around the widths of vectors, and where one way of reducing takes over from another: from 33 rows on, and
# with two stages from 1024 rows in float64 and from 1280 in float32.
SINGLE, DOUBLE = torch.float32, torch.float64
SIZED = [
    *((m, dtype) for m in (*cases.SIZES, 7, 9, 15, 16, 17, 47, 48, 49) for dtype in DTYPES),
    *((1023, DOUBLE), (1024, DOUBLE), (1025, DOUBLE), (1279, SINGLE), (1280, SINGLE), (1281, SINGLE)),
]


@pytest.mark.parametrize(("m", "dtype"), SIZED)
def test_eigvalsh(m: int, dtype: torch.dtype) -> None:
    if m <= 129:
        mats = [cases.SYMMETRIC[kind](m).to(dtype) for kind in cases.SYMMETRIC]
    elif m <= 513:
        mats = [cases.SYMMETRIC[kind](m).to(dtype) for kind in ("wishart", "graded", "rank_one")]
    else:
        mats = [cases.wishart(m).to(dtype)]
    same, exact = torch_and_float64(mats)
    ours = ops.grouped_eigvalsh(mats, backend="cpu")
    assert_group_as_accurate(ours, same, exact, sums=dtype == torch.float32 and m <= 513)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 16, 32, 33, 70])
def test_a_stack_is_the_same_bit_for_bit(m: int, dtype: torch.dtype) -> None:
    # More than two vectors of matrices, the last not full.
    stack = torch.stack([cases.wishart(m) * (i + 1) for i in range(37)]).to(dtype)
    together = ops.grouped_eigvalsh(stack, backend="cpu")
    for mat, values in zip(stack, together, strict=True):
        assert torch.equal(ops.grouped_eigvalsh([mat], backend="cpu")[0], values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [7, 33, 150])
def test_eigvalsh_reads_the_lower_triangle_alone(m: int, dtype: torch.dtype) -> None:
    mat = cases.wishart(m).to(dtype)
    (expected,) = ops.grouped_eigvalsh([mat], backend="cpu")
    half = mat.tril() + torch.full_like(mat, float("nan")).triu(1)
    for values in ops.grouped_eigvalsh([cases.layouts(mat)["spaced"], half], backend="cpu"):
        assert torch.equal(values, expected)


@pytest.mark.parametrize(("m", "dtype"), [(1283, torch.float32), (1030, torch.float64)])
def test_the_number_of_threads_changes_no_bit_of_eigvalsh(
    m: int, dtype: torch.dtype, threads: Threads
) -> None:
    mats = [cases.wishart(size).to(dtype) for size in (m, 20, 65)]
    with threads(1):
        alone = ops.grouped_eigvalsh(mats, backend="cpu")
    with threads(3):
        together = ops.grouped_eigvalsh(mats, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("m", [1, 20, 33, 200])
def test_a_value_that_is_not_finite_is_named(m: int) -> None:
    mat = cases.wishart(m).float()
    mat[m - 1, m // 2] = mat[m // 2, m - 1] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite values, got nan .*\(conv2\)"):
        ops.grouped_eigvalsh([cases.wishart(m).float(), mat], names=["conv1", "conv2"], backend="cpu")


# --- pivoted Cholesky


# In blocks from 384 rows on.
@pytest.mark.parametrize("m", [1, 2, 3, 17, 33, 64, 130, 257, 383, 384, 385, 450])
def test_picks_equal_those_of_qr_with_pivoting(m: int) -> None:
    x = cases.normal(m, 2 * m + 3)
    (ours,) = ops.grouped_pivoted_cholesky([x @ x.T], [m], backend="cpu")
    _, pivots = scipy.linalg.qr(x.T.numpy(), mode="r", pivoting=True)
    assert ours.order.tolist() == pivots.tolist()
    unit = torch.finfo(torch.float64).eps * (x @ x.T).max() * (m + 4)
    assert ((x @ x.T) - ours.factor @ ours.factor.T).abs().max() <= unit


@pytest.mark.parametrize("rank", [1, 32, 70])
def test_pivoted_cholesky_stops_at_the_rank(rank: int) -> None:
    low = cases.normal(500, rank)
    (ours,) = ops.grouped_pivoted_cholesky([low @ low.T], [500], backend="cpu")
    assert len(ours.order) == rank
