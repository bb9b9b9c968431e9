"""grouped_cholesky_solve: every backend against more digits, singular systems, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases
from torch import Tensor

from slimfast.kernels import grouped_cholesky_solve

SIZES = (1, 2, 3, 5, 8, 17, 31, 32, 33, 63, 64, 65, 100, 129, 200, 257)
DAMPINGS = [0.5, 0.0, 1e-3]


def damped(a: Tensor, damping: float) -> Tensor:
    """The whole matrix of a system, in float64, from the lower triangle."""
    lower = a.double().tril()
    return lower + lower.tril(-1).T + damping * torch.eye(len(a)).double()


def assert_solves(x: Tensor, a: Tensor, b: Tensor) -> None:
    """The residual is as small as that of ``torch.linalg.solve`` in float64, and one rounding of ``x``."""
    scale = a.abs().max() * x.double().abs().max() * len(a)
    residual = (a @ x.double() - b.double()).abs().max()
    own = (a @ torch.linalg.solve(a, b.double()) - b.double()).abs().max()
    unit = torch.finfo(x.dtype).eps * scale
    assert residual <= 2 * max(own, unit / len(a) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", SIZES)
def test_accuracy(m: int, dtype: torch.dtype, backend: str) -> None:
    mats = [cases.wishart(m).to(dtype), cases.layer_like(m).to(dtype)]
    for k in (1, 3, 40):
        rhs = [cases.normal(m, k, dtype=dtype)] * 2
        solutions, failures = grouped_cholesky_solve(mats, rhs, [DAMPINGS, [0.1]], backend=backend)
        for a, b, each, found, failed in zip(mats, rhs, [DAMPINGS, [0.1]], solutions, failures, strict=True):
            assert found.shape == (len(each), m, k)
            assert found.dtype == dtype
            assert failed.tolist() == [0] * len(each)
            for x, damping in zip(found, each, strict=True):
                assert_solves(x, damped(a, damping), b)


def test_a_float64_solution_is_as_good_as_torchs(backend: str) -> None:
    for m in (40, 150, 300):
        a, b = cases.wishart(m), cases.normal(m, 7)
        ((x,),), _ = grouped_cholesky_solve([a], [b], [[0.01]], backend=backend)
        whole = damped(a, 0.01)
        exact = torch.linalg.solve(whole, b)
        # One step of refinement in the residual: exact to the last digits that the system has.
        exact = exact + torch.linalg.solve(whole, b - whole @ exact)
        own = (torch.cholesky_solve(b, torch.linalg.cholesky(whole)) - exact).abs().max()
        assert (x - exact).abs().max() <= 2 * max(own, torch.finfo(torch.float64).eps * exact.abs().max())


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "spaced", "offset"])
def test_every_layout_and_the_lower_triangle_alone(layout: str, backend: str) -> None:
    a, b = cases.wishart(70), cases.normal(70, 9)
    expected = torch.linalg.solve(damped(a, 0.1), b)
    lower = torch.where(torch.ones(70, 70).bool().tril(), a, float("nan"))
    strided = cases.layouts(lower)[layout], cases.layouts(b)[layout]
    (found,), (failed,) = grouped_cholesky_solve([strided[0]], [strided[1]], [[0.1]], backend=backend)
    assert failed.tolist() == [0]
    assert torch.allclose(found[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("m", [1, 4, 33, 70, 200])
def test_what_is_not_positive_definite_is_told(m: int, backend: str) -> None:
    a, b = cases.wishart(m), cases.normal(m, 2)
    for at in {0, m // 2, m - 1}:
        broken = a.clone()
        broken[at, at] = -100.0
        (found,), (failed,) = grouped_cholesky_solve([broken], [b], [[0.0, 200.0, 1.0]], backend=backend)
        assert failed.tolist() == [at + 1, 0, at + 1]
        assert found[::2].isnan().all()
        assert_solves(found[1], damped(broken, 200.0), b)


def test_a_matrix_of_zeros_needs_damping(backend: str) -> None:
    a, b = torch.zeros(5, 5), torch.ones(5, 2)
    (found,), (failed,) = grouped_cholesky_solve([a], [b], [[0.0, 2.0]], backend=backend)
    assert failed.tolist() == [1, 0]
    assert found[0].isnan().all()
    assert torch.equal(found[1], torch.full((5, 2), 0.5))


def test_a_value_that_is_not_finite_names_its_layer(backend: str) -> None:
    a, b = cases.wishart(6), cases.normal(6, 2)
    bad = a.clone()
    bad[4, 2] = float("nan")
    with pytest.raises(
        ValueError, match=r"cholesky_solve: expected finite values, got nan at \(4, 2\).*\(fc2\)"
    ):
        grouped_cholesky_solve([a, bad], [b, b], [[1.0], [1.0]], names=["fc1", "fc2"], backend=backend)
    bad_rhs = b.clone()
    bad_rhs[5, 1] = float("inf")
    with pytest.raises(ValueError, match=r"got inf at \(5, 1\), 1 in all \(fc1\)"):
        grouped_cholesky_solve([a], [bad_rhs], [[1.0]], names=["fc1"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_arguments_are_refused() -> None:
    a, b = cases.wishart(6), cases.normal(6, 2)
    refused = [
        (([a], [b], [[]]), r"expected one or more dampings of at least 0, got \[\] \(layer 0\)"),
        (([a], [b], [[-0.1]]), r"expected one or more dampings of at least 0, got \[-0.1\]"),
        (([a], [b], [[float("nan")]]), "expected one or more dampings"),
        (([a], [b[:5]], [[1.0]]), r"expected a right-hand side \(6, k\).* got \(5, 2\)"),
        (([a], [b.float()], [[1.0]]), "of torch.float64, got .* of torch.float32"),
        (([a], [], [[1.0]]), "expected 1 right-hand sides and lists of dampings, got 0 and 1"),
        (([a[:5]], [b], [[1.0]]), r"expected a square matrix, got shape \(5, 6\)"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=f"cholesky_solve: .*{message}"):
            grouped_cholesky_solve(*arguments)
    assert grouped_cholesky_solve([], [], []).solutions == []
