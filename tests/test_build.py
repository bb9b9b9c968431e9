"""Check what CMake decides to build; nothing is compiled here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The environment's own comes first: it is what builds slimfast.
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

Configure = Callable[..., subprocess.CompletedProcess[str]]


def write_program(path: Path, status: int) -> None:
    """Write a program that does nothing and ends with that status."""
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Return a function that configures a build where nvcc always fails, and a GPU answers or does not."""
    if CMAKE is None:
        pytest.skip("cmake is not on PATH")
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")

    def run(cuda: str, *, gpu: bool) -> subprocess.CompletedProcess[str]:
        write_program(tmp_path / "nvidia-smi", 0 if gpu else 9)
        write_program(tmp_path / "nvcc", 1)
        pybind11 = pytest.importorskip("pybind11").get_cmake_dir()
        options = {"SLIMFAST_CUDA": cuda, "Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [CMAKE, "-S", str(ROOT), "-B", str(tmp_path), *(f"-D{k}={v}" for k, v in options.items())],
            env={**os.environ, "PATH": path, "CUDACXX": str(tmp_path / "nvcc")},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("cuda", "gpu", "status", "told"),
    [
        ("AUTO", False, 0, "not built: no NVIDIA GPU is here; SLIMFAST_CUDA=ON builds it all the same"),
        ("AUTO", True, 0, "not built: no nvcc that works"),
        ("ON", False, 1, "SLIMFAST_CUDA=ON, but no nvcc that works"),
        ("OFF", True, 0, "not built (SLIMFAST_CUDA=OFF)"),
    ],
)
def test_the_cuda_kernels_are_for_a_gpu_or_a_wish(
    configure: Configure, cuda: str, gpu: bool, status: int, told: str
) -> None:
    done = configure(cuda, gpu=gpu)
    assert done.returncode == status, done.stderr
    assert f"slimfast._cuda: {told}" in " ".join((done.stdout + done.stderr).split())
