"""The whole road where the weights are: certified widths, plans and thin networks of a GPU are the CPU's."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from support import kernels_cases as cases
from support.paths import ROOT
from torch import nn

import slimfast

TAUS = (0.3, 0.5, 0.8, 0.9, 0.95, 0.99)
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 40, 3), nn.Conv2d(40, 72, 3), nn.Conv2d(72, 33, 1)]
    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(33, 10)).eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_certified_widths_are_those_of_float64(device: str, dtype: torch.dtype) -> None:
    # A warp, a block and, on a GPU, two stages; both sides; a layer of few tiles and one of many.
    shapes = ((20, 60), (300, 90), (40, 700), (10, 5), *([(700, 500)] if device == "cuda" else []))
    weights = {f"{n} x {d}": cases.normal(n, d).to(dtype) for n, d in shapes}
    found = slimfast.measure_spectra({k: v.to(device) for k, v in weights.items()}, taus=TAUS)
    for name, weight in weights.items():
        exact = torch.linalg.eigvalsh(torch.cov(weight.double())).flip(0).clamp_min(0)
        shares = exact.cumsum(0) / exact.sum()
        for tau in TAUS:
            assert found[name].certified(explained_variance=tau)
            width = int((shares < tau).sum()) + 1
            assert found[name].width(explained_variance=tau) == width, (name, tau)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_slimmed_where_it_is(device: str) -> None:
    model, example = network(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    expected = slimfast.plan(model, example, macs=0.5)
    moved, there = copy.deepcopy(model).to(device), example.to(device)
    plan = slimfast.plan(moved, there, macs=0.5)
    assert {g.name: g.width for g in plan.groups} == {g.name: g.width for g in expected.groups}
    thin = slimfast.prune_channels(moved, plan)
    assert {p.device.type for p in thin.parameters()} == {device}
    with torch.no_grad():
        assert bool(thin(there).isfinite().all())
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters())


def test_kernels_are_tested_without_what_other_tests_need_in_a_process() -> None:
    """A machine with a GPU may have neither beartype nor jsonschema, and no network to get them."""
    code = (
        "import sys\nsys.modules |= dict.fromkeys(('beartype', 'jsonschema', 'torch_pruning', 'atheris'))\n"
        "import pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "elsewhere or bad or a_cluster"]
    files = [
        "tests/benchmarks/test_gpu_pipeline.py",
        *(f"tests/kernels/test_{name}.py" for name in ("memory", "cuda_small", "prepare", "triton")),
    ]
    command = [sys.executable, "-c", code, *options, *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
