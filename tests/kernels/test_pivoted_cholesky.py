"""grouped_pivoted_cholesky: picks, against QR with pivoting, factor and residual, ties and rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import scipy.linalg
import torch
from support import kernels_cases as cases

from slimfast.kernels.ops import grouped_pivoted_cholesky

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float32, torch.float64)
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 2, 3, 17, 33, 64, 130, 257, 384, 450])
def test_picks_equal_those_of_qr_with_pivoting(m: int, backend: str) -> None:
    x = cases.normal(m, 2 * m + 3)
    (ours,) = grouped_pivoted_cholesky([x @ x.T], [m], backend=backend)
    _, pivots = scipy.linalg.qr(x.T.numpy(), mode="r", pivoting=True)
    assert ours.order.tolist() == pivots.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", cases.POSITIVE_SEMIDEFINITE)
@pytest.mark.parametrize("m", [1, 2, 5, 33, 65, 129, 401])
def test_factor_and_residual_explain_the_matrix(m: int, kind: str, dtype: torch.dtype, backend: str) -> None:
    mat = cases.SYMMETRIC[kind](m).to(dtype)
    rank = (m + 1) // 2
    (ours,) = grouped_pivoted_cholesky([mat], [rank], backend=backend)
    picked = len(ours.order)
    assert picked <= rank
    assert ours.factor.shape == (m, picked)
    assert ours.residual.shape == (picked,)
    assert ours.factor.dtype == ours.residual.dtype == dtype
    assert len(set(ours.order.tolist())) == picked
    s, factor = mat.double(), ours.factor.double()
    # A sum of at most m products, a square root, a division and a square.
    unit = torch.finfo(dtype).eps * s.abs().max() * (m + 4)
    if picked:
        assert (s[:, ours.order] - factor @ factor[ours.order].T).abs().max() <= unit
    for step in range(picked):
        # What earlier picks explain exactly is stored as exactly zero.
        assert not bool(factor[ours.order[:step], step].any())
        left = (s.diagonal() - factor[:, : step + 1].square().sum(1)).clamp_min(0).sum()
        assert abs(ours.residual[step].double() - left) <= m * unit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_smallest_index(dtype: torch.dtype, backend: str) -> None:
    identity = torch.eye(70, dtype=dtype)
    equal = torch.diag(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]).to(dtype))
    ours = grouped_pivoted_cholesky([identity, equal], [70, 5], backend=backend)
    assert ours[0].order.tolist() == list(range(70))
    assert ours[0].residual.tolist() == list(range(69, -1, -1))
    assert ours[1].order.tolist() == [1, 3, 2, 4, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stops_at_the_numerical_rank(dtype: torch.dtype, backend: str) -> None:
    low = cases.normal(90, 7)
    mats = [cases.rank_one(40), torch.zeros(9, 9), low @ low.T, torch.eye(4), torch.zeros(1, 1)]
    ours = grouped_pivoted_cholesky([m.to(dtype) for m in mats], [40, 9, 90, 0, 1], backend=backend)
    assert [len(r.order) for r in ours] == [1, 0, 7, 0, 0]
    assert [tuple(r.factor.shape) for r in ours] == [(40, 1), (9, 0), (90, 7), (4, 0), (1, 0)]
    assert ours[0].order.item() == cases.rank_one(40).diagonal().argmax()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 32, 64, 70])
def test_a_large_matrix_stops_at_its_rank(rank: int, backend: str) -> None:
    low = cases.normal(500, rank)
    (ours,) = grouped_pivoted_cholesky([low @ low.T], [500], backend=backend)
    assert len(ours.order) == rank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["transposed", "spaced", "offset"])
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    for m in (70, 410):
        mat = cases.wishart(m).to(dtype)
        (expected,) = grouped_pivoted_cholesky([mat], [40], backend="cpu")
        (ours,) = grouped_pivoted_cholesky([cases.layouts(mat)[layout]], [40], backend="cpu")
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_number_of_threads_changes_no_bit(threads: Threads) -> None:
    mats = [cases.wishart(m).float() for m in (300, 20, 65)]
    with threads(1):
        alone = grouped_pivoted_cholesky(mats, [100, 20, 65], backend="cpu")
    with threads(3):
        together = grouped_pivoted_cholesky(mats, [100, 20, 65], backend="cpu")
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_input_names_its_layer() -> None:
    good = torch.eye(3)
    bad = torch.eye(3)
    bad[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite values, got nan at \(1, 1\), 1 in all \(b\)"):
        grouped_pivoted_cholesky([good, bad], [1, 1], names=["a", "b"])
    aside = torch.eye(3)
    aside[2, 0] = float("inf")
    with pytest.raises(ValueError, match=r"expected finite values, got inf at \(2, 0\), 1 in all \(b\)"):
        grouped_pivoted_cholesky([good, aside], [1, 1], names=["a", "b"])
    with pytest.raises(ValueError, match=r"expected a rank in 0\.\.3, got 4 \(b\)"):
        grouped_pivoted_cholesky([good, good], [3, 4], names=["a", "b"])
    with pytest.raises(ValueError, match=r"expected a square matrix, got shape \(2, 3\) \(layer 0\)"):
        grouped_pivoted_cholesky([torch.zeros(2, 3)], [1])
    with pytest.raises(ValueError, match="expected 1 ranks, got 2"):
        grouped_pivoted_cholesky([good], [1, 1])
    assert grouped_pivoted_cholesky([], []) == []
