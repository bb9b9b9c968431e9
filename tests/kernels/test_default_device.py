"""Nothing is allocated on the device that a program has made its default: every allocation names its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.paths import ROOT
from torch import nn

import slimfast
from slimfast.kernels import (
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    grouped_spectra,
)

FACTORIES = {
    *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "normal", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}


@pytest.fixture
def default_is_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def layers() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((5, 9), (70, 30), (1, 4), (33, 33))
    return [torch.randn(size, generator=generator, device="cpu") for size in sizes]


def results(backend: str) -> list[torch.Tensor]:
    """What the ops make of the layers with one backend, as one list."""
    xs = layers()
    covariances = grouped_covariance(xs, backend=backend)
    joint = grouped_covariance([[xs[0], xs[0] * 2], [xs[1]]], backend=backend)
    found = [*covariances.matrices, covariances.traces, *joint.matrices, joint.traces]
    thin = grouped_gather(xs, [{1: torch.tensor([0, 2], device="cpu")} for _ in xs], backend=backend)
    found += thin
    if backend != "triton":
        found += grouped_eigvalsh(covariances.matrices, backend=backend)
        stack = torch.stack([covariances.matrices[3]] * 3)
        found.append(grouped_eigvalsh(stack, backend=backend))
        for picked in grouped_pivoted_cholesky(covariances.matrices, [1, 4, 1, 7], backend=backend):
            found += [picked.order, picked.factor, picked.residual]
        spectra = grouped_spectra(xs, backend=backend)
        found += [*spectra.eigenvalues, spectra.traces]
    return found


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_op_gives_the_same_whatever_the_default_device(backend: str, default_is_meta: None) -> None:
    under_meta = results(backend)
    torch.set_default_device(None)
    plain = results(backend)
    assert len(under_meta) == len(plain)
    for a, b in zip(under_meta, plain, strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


@pytest.mark.usefixtures("emulator")
def test_the_cuda_kernels_too(default_is_meta: None) -> None:
    under_meta = results("cuda")
    torch.set_default_device(None)
    for a, b in zip(under_meta, results("cuda"), strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


def test_the_triton_kernels_too() -> None:
    pytest.importorskip("triton")
    code = """
import torch
from kernels.test_default_device import results
plain = results("triton")
torch.set_default_device("meta")
assert all(torch.equal(a, b) for a, b in zip(results("triton"), plain, strict=True))
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    return nn.Sequential(*parts).eval()


def test_a_network_is_slimmed_repaired_and_verified(default_is_meta: None) -> None:
    torch.set_default_device(None)
    model, x = network(), torch.randn(4, 3, 8, 8)
    torch.set_default_device("meta")
    graph = slimfast.trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, [x])
    made = slimfast.plan(model, x, params=0.5, calibration=calibration)
    for repair in ("weights", "activations"):
        thin = slimfast.prune_channels(
            model, made, select="activations", repair=repair, calibration=calibration
        )
        assert {t.device.type for t in thin.state_dict().values()} == {"cpu"}
    for method in ("l1", "geometric_median", "pivoted_cholesky"):
        slimfast.select(model, made, method=method)
    torch.set_default_device(None)
    assert np.isfinite(thin(x).detach().numpy()).all()


def test_every_allocation_names_its_device() -> None:
    wrong = []
    for path in sorted((ROOT / "slimfast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
                and not any(keyword.arg in ("device", None) for keyword in node.keywords)
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: torch.{node.func.attr}")
    assert wrong == []
