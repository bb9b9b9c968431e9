"""The CPU kernels under every instruction set that this machine runs: found, forced, equally accurate."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import kernels_cases as cases
from support.cpu_fixtures import native_isas
from torch import Tensor

from slimfast.kernels import Convolution, Moments, grouped_patch_moments, native
from slimfast.kernels.backends import cpu, reference

MODULE = native.cpu().module
ISAS = native_isas()


def test_detection_agrees_with_the_operating_system() -> None:
    assert MODULE is not None
    expected = ["baseline"]
    if platform.machine() in ("x86_64", "AMD64") and Path("/proc/cpuinfo").exists():
        flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
        if {"avx2", "fma"} <= flags:
            expected.append("avx2")
        if {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            expected.append("avx512")
            # The kernel may refuse the tiles' state to a process.
            wider = {"avx512_bf16": {"avx512_bf16"}, "amx": {"amx_tile", "amx_bf16"}}
            expected += [name for name, needed in wider.items() if needed <= flags]
    assert expected == MODULE.available_isas()


@pytest.mark.parametrize("isa", ISAS)
def test_forced_by_the_environment(isa: str) -> None:
    code = "import slimfast.kernels.native as n; print(n.cpu().module.isa())"
    env = {**os.environ, "SLIMFAST_ISA": isa}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == isa


def test_an_unavailable_one_is_an_error_at_first_use() -> None:
    code = (
        "import torch, slimfast.kernels.native as n\n"
        "from slimfast.kernels.ops import grouped_eigvalsh\n"
        "try:\n    grouped_eigvalsh([torch.eye(3)], backend='cpu')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    env = {**os.environ, "SLIMFAST_ISA": "mmx"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    told = f"SLIMFAST_ISA: expected one of {', '.join(ISAS)} on this machine, got 'mmx'"
    assert run.stdout.strip() == told
    with pytest.raises(ValueError, match="isa: expected one of baseline"):
        cpu.eigvalsh([torch.eye(3)], isa="mmx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariance(isa: str, dtype: torch.dtype) -> None:
    for source in (dtype, torch.bfloat16, torch.float16):
        for n, d in ((1, 1), (3, 70), (33, 140), (130, 50), (70, 3000)):
            x = cases.normal(n, d).to(source)
            for layout in (x, x.T.contiguous().T):
                (ours,), traces = cpu.covariance([layout], [n <= d], [dtype], isa=isa)
                (exact,), exact_traces = reference.covariance([x], [n <= d], [torch.float64])
                scale = torch.finfo(dtype).eps * exact.abs().max()
                assert (ours.double() - exact).abs().max() <= 4 * max(n, d) ** 0.5 * scale
                assert (traces - exact_traces).abs() <= 4 * torch.finfo(dtype).eps * exact_traces


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigvalsh(isa: str, dtype: torch.dtype) -> None:
    mats = [
        cases.SYMMETRIC[kind](m).to(dtype)
        for kind, m in itertools.product(
            ("wishart", "graded", "repeated", "tiny_scale"), (1, 2, 7, 32, 33, 100, 129)
        )
    ]
    for mat, values in zip(mats, cpu.eigvalsh(mats, isa=isa), strict=True):
        exact = torch.linalg.eigvalsh(mat.double())
        unit = torch.finfo(dtype).eps * exact.abs().max()
        assert (values.double() - exact).abs().max() <= 2 * mat.shape[0] ** 0.5 * unit + 4 * unit


def test_pivoted_cholesky(isa: str) -> None:
    mats = [cases.wishart(m) for m in (1, 6, 65, 130)]
    expected = reference.pivoted_cholesky(mats, [1, 6, 30, 130])
    ours = cpu.pivoted_cholesky(mats, [1, 6, 30, 130], isa=isa)
    for (order, factor, _), (expected_order, expected_factor, _) in zip(ours, expected, strict=True):
        assert torch.equal(order, expected_order)
        assert (factor - expected_factor).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments(isa: str, dtype: torch.dtype) -> None:
    for source in (dtype, torch.bfloat16, torch.float16):
        for shape, dim in (((1, 1), 0), ((3, 70), 1), ((33, 140), 0), ((5, 130, 12), 1), ((2, 6, 9, 9), 1)):
            x = cases.normal(*shape).to(source).movedim(dim, 0)
            mask = torch.rand(x.shape[1:], generator=cases.generator(*shape)) < 0.8
            mask.view(-1)[0] = True
            (ours,), (exact,) = new_moments(x), new_moments(x)
            cpu.moments([x], [mask], [ours], [dtype], isa=isa)
            cpu.moments([x], [None], [ours], [dtype], isa=isa)
            reference.moments([x, x], [mask, None], [exact, exact], [dtype] * 2)
            scale = torch.finfo(dtype).eps * exact.squares.abs().max()
            assert ours.count == exact.count
            assert (ours.squares - exact.squares).abs().max() <= 4 * x[0].numel() ** 0.5 * scale
            assert torch.allclose(ours.mean, exact.mean, rtol=1e-13, atol=1e-14)


def test_patch_moments(isa: str) -> None:
    conv = Convolution((3, 3), (2, 1), (1, 1), (1, 1), 2)
    x = cases.normal(3, 12, 13, 11, dtype=torch.float32)
    ours, exact = (grouped_patch_moments([x[:0]], [conv])[0] for _ in range(2))
    cpu.patch_moments([x], [conv], [ours], [torch.float32], isa=isa)
    reference.patch_moments([x], [conv], [exact], [torch.float32])
    assert ours.count == exact.count
    assert (ours.squares - exact.squares).abs().max() <= 2e-6 * exact.squares.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cholesky_solve(isa: str, dtype: torch.dtype) -> None:
    mats = [cases.wishart(m).to(dtype) for m in (1, 6, 23, 65, 130)]
    rhs = [cases.normal(len(a), 30, dtype=dtype) for a in mats]
    dampings = [[0.1, 0.0]] * len(mats)
    ours = cpu.cholesky_solve(mats, rhs, dampings, isa=isa)
    for (found, failed), (expected, _) in zip(
        ours, reference.cholesky_solve(mats, rhs, dampings), strict=True
    ):
        assert failed.tolist() == [0, 0]
        assert (found - expected).abs().max() <= 1e3 * torch.finfo(dtype).eps * expected.abs().max()


def new_moments(x: Tensor) -> list[Moments]:
    """Moments of no positions, for the variables of x."""
    return [Moments(0, torch.zeros(len(x)).double(), torch.zeros(len(x), len(x)).double())]


def widths(isa: str) -> Tensor:
    """k(tau) of a few layers for many tau, from the float32 kernels of one instruction set."""
    xs = [
        cases.normal(n, d).mul(torch.logspace(0, -2, d)).float() for n, d in ((24, 80), (96, 300), (200, 150))
    ]
    matrices, traces = cpu.covariance(
        xs, [x.shape[0] <= x.shape[1] for x in xs], [torch.float32] * 3, isa=isa
    )
    taus = torch.linspace(0.3, 0.9999, 401).double()
    found = []
    for values, trace in zip(cpu.eigvalsh(matrices, isa=isa), traces, strict=True):
        share = values.double().flip(0).cumsum(0) / trace
        # Where a share comes within float32's error of tau the package looks again in float64.
        certain = (share[:, None] - taus).abs().min(0).values > 1e-5
        found.append(torch.where(certain, torch.searchsorted(share, taus), -1))
    return torch.cat(found)


def test_widths_agree(isa: str) -> None:
    expected = widths("baseline")
    assert (expected >= 0).float().mean() > 0.9
    ours = widths(isa)
    settled = (ours >= 0) & (expected >= 0)
    assert settled.float().mean() > 0.9
    assert torch.equal(ours[settled], expected[settled])
