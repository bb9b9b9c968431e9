"""The CUDA backend: why it cannot run, how it loads, and kernels whose threads run in any order."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from support import kernels_cases as cases
from support.cuda_fixtures import SHARED_BYTES, assert_independent_of_the_order, barriers_not_needed
from support.gather_cases import gather_cases
from torch import Tensor

from slimfast.kernels import dispatch, native, ops

SINGLE_DOUBLE = (torch.float32, torch.float64)


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
