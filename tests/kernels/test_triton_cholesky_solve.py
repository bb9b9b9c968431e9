"""Damped systems on Triton: on a GPU or under its interpreter, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import kernels_cases as cases
from support.triton_process import run_where_triton_is_not_loaded, triton_device

from slimfast.kernels import grouped_cholesky_solve
from slimfast.kernels.backends import damped_systems

# ``-m gpu`` is what an NVIDIA GPU is needed for.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
# One block, one and a bit, three; right-hand sides of one block and of two. The interpreter is slow.
SIZES = ((1, 1), (5, 70), (70, 2), (130, 3))
DAMPINGS = [[0.5], [0.5, 0.0], [0.1], [0.01]]


@pytest.fixture(scope="module")
def on() -> Iterator[str]:
    """Where kernels run in this process."""
    yield from triton_device()


def test_kernels_in_a_process_of_their_own_where_triton_is_loaded() -> None:
    run_where_triton_is_not_loaded(__file__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_systems_of_a_call(dtype: torch.dtype, on: str) -> None:
    sizes = SIZES if dtype == torch.float64 else SIZES[:2]
    mats = [cases.wishart(m).to(dtype) for m, _ in sizes]
    rhs = [cases.normal(m, k, dtype=dtype) for m, k in sizes]
    given = [a.to(on) for a in mats], [b.T.contiguous().T.to(on) for b in rhs]
    dampings = DAMPINGS[: len(sizes)]
    solutions, failures = grouped_cholesky_solve(*given, dampings, backend="triton")
    for a, b, each, found, failed in zip(mats, rhs, dampings, solutions, failures, strict=True):
        assert failed.tolist() == [0] * len(each)
        assert failed.device.type == "cpu"
        for damping, x in zip(each, found.cpu(), strict=True):
            exact = torch.linalg.solve(a.double() + damping * torch.eye(len(a)).double(), b.double())
            rounding = 1e-12 if dtype == torch.float64 else 1e-7
            assert (x.double() - exact).abs().max() <= rounding * exact.abs().max()


def test_dtypes_of_systems_may_differ(on: str) -> None:
    a, b = cases.wishart(9).to(on), cases.normal(9, 2).to(on)
    given = [a, a.float(), a], [b, b.float(), b]
    (one, half, again), _ = grouped_cholesky_solve(*given, [[0.1]] * 3, backend="triton")
    assert torch.equal(one, again)
    assert torch.allclose(half.double(), one, atol=1e-5)


def test_the_lower_triangle_alone_is_read(on: str) -> None:
    a, b = cases.wishart(9), cases.normal(9, 2)
    lower = torch.where(torch.ones(9, 9).bool().tril(), a, float("nan"))
    ((found,),), _ = grouped_cholesky_solve([lower.to(on)], [b.to(on)], [[0.1]], backend="triton")
    assert torch.allclose(found.cpu(), torch.linalg.solve(a + 0.1 * torch.eye(9).double(), b))


@pytest.mark.parametrize("m", [1, 9, 70])
def test_what_is_not_positive_definite_is_told(m: int, on: str) -> None:
    a, b = cases.wishart(m), cases.normal(m, 2)
    for at in {0, m - 1}:
        broken = a.clone()
        broken[at, at] = -100.0
        (found, good), (failed, _) = grouped_cholesky_solve(
            [broken.to(on), a.to(on)], [b.to(on)] * 2, [[0.0, 200.0], [0.1]], backend="triton"
        )
        assert failed.tolist() == [at + 1, 0]
        assert found[0].isnan().all()
        assert found[1].isfinite().all()
        exact = torch.linalg.solve(a + 0.1 * torch.eye(m).double(), b)
        assert torch.allclose(good[0].cpu(), exact, rtol=1e-9, atol=1e-12)


def test_a_system_does_not_depend_on_the_others(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mats = [cases.wishart(m).to(on) for m, _ in SIZES[:3]]
    rhs = [cases.normal(m, k).to(on) for m, k in SIZES[:3]]
    together, _ = grouped_cholesky_solve(mats, rhs, DAMPINGS[:3], backend="triton")
    # Memory for one system at a time.
    monkeypatch.setattr(damped_systems, "call_bytes", lambda *_: 1)
    parted, _ = grouped_cholesky_solve(mats, rhs, DAMPINGS[:3], backend="triton")
    for one, other in zip(together, parted, strict=True):
        assert torch.equal(one, other)
