"""The CUDA kernels of damped systems, emulated and on a GPU; test_cholesky_solve.py has more cases."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import kernels_cases as cases
from support.cuda_fixtures import assert_independent_of_the_order, barriers_not_needed
from torch import Tensor

from slimfast.kernels import grouped_cholesky_solve
from slimfast.kernels.backends import damped_systems

# One block, one and a bit, several; right-hand sides of one block and of two.
SIZES = ((5, 3), (64, 70), (65, 1), (150, 130))


def systems(device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[list[float]]]:
    mats = [cases.wishart(m).to(device, dtype) for m, _ in SIZES]
    rhs = [cases.normal(m, k, dtype=dtype).to(device) for m, k in SIZES]
    return mats, rhs, [[0.5, 1e-3], [0.1], [0.0, 1.0, 2.0], [0.01, 0.1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_systems_of_a_call(device: str, dtype: torch.dtype) -> None:
    mats, rhs, dampings = systems(device, dtype)
    solutions, failures = grouped_cholesky_solve(mats, rhs, dampings, backend="cuda")
    for a, b, each, found, failed in zip(mats, rhs, dampings, solutions, failures, strict=True):
        assert failed.tolist() == [0] * len(each)
        assert failed.device.type == "cpu"
        for damping, x in zip(each, found.double().cpu(), strict=True):
            whole = a.cpu().double() + damping * torch.eye(len(a), device="cpu").double()
            exact = torch.linalg.solve(whole, b.cpu().double())
            rounding = 1e-12 if dtype == torch.float64 else 1e-7
            assert (x - exact).abs().max() <= rounding * exact.abs().max()


def test_a_system_does_not_depend_on_the_others(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mats, rhs, dampings = systems(device, torch.float64)
    together, _ = grouped_cholesky_solve(mats, rhs, dampings, backend="cuda")
    # Memory for one system at a time.
    monkeypatch.setattr(damped_systems, "call_bytes", lambda *_: 1)
    parted, _ = grouped_cholesky_solve(mats, rhs, dampings, backend="cuda")
    for one, other in zip(together, parted, strict=True):
        assert torch.equal(one, other)


def test_a_failure_leaves_the_others(device: str) -> None:
    a, b = cases.wishart(150).to(device), cases.normal(150, 5).to(device)
    broken = a.clone()
    broken[100, 100] = -1.0
    (bad, good), failures = grouped_cholesky_solve([broken, a], [b, b], [[0.0, 9.0], [0.0]], backend="cuda")
    assert [failed.tolist() for failed in failures] == [[101, 0], [0]]
    assert bad[0].isnan().all()
    assert bad[1].isfinite().all()
    assert torch.allclose(a @ good[0], b, atol=1e-10)


def run_solves(_: ModuleType) -> list[Tensor]:
    solutions, failures = grouped_cholesky_solve(*systems("cpu", torch.float64), backend="cuda")
    return [*solutions, *failures]


def test_results_do_not_depend_on_the_order_of_threads(emulator: ModuleType) -> None:
    assert_independent_of_the_order(emulator, run_solves)


def test_every_barrier_is_needed_and_a_missing_one_is_seen(emulator: ModuleType) -> None:
    assert barriers_not_needed(emulator, run_solves) == []
