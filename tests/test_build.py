"""Check what `make` and CMake decide to build, and when; nothing is compiled here."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import ROOT

MAKE = shutil.which("make")
# The environment's own comes first: it is what builds slimfast.
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

Make = Callable[..., str]
Configure = Callable[..., subprocess.CompletedProcess[str]]


def write_program(path: Path, status: int) -> None:
    """Write a program that does nothing and ends with that status."""
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that tells what `make` would run in an empty environment, with an nvcc or without."""
    if MAKE is None:
        pytest.skip("make is not on PATH")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "find").symlink_to(shutil.which("find") or "find")

    def run(*arguments: str, nvcc: bool = False, **settings: str) -> str:
        if nvcc:
            write_program(programs / "nvcc", 0)
        command = [MAKE, "-n", f"VENV={tmp_path}", *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={"PATH": str(programs), **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.replace("\\\n", " ")

    return run


def options(commands: str) -> dict[str, str]:
    """Return the options with which slimfast is installed, once."""
    (line,) = [line for line in commands.splitlines() if " -e " in line]
    assert "--no-build-isolation" in line
    assert "--verbose" in line
    return dict(re.findall(r"SLIMFAST_(\w+)=(\w+)", line))


def test_the_demo_compiles_what_runs_here(make: Make) -> None:
    found = options(make("demo", nvcc=True))
    assert found == {"CUDA": "AUTO", "CUDA_EMULATION": "OFF", "CPU_EMULATION": "OFF"}


def test_the_tests_compile_all_that_nvcc_allows(make: Make) -> None:
    found = {"CUDA_EMULATION": "ON", "CPU_EMULATION": "ON"}
    assert options(make("test")) == {"CUDA": "AUTO", **found}
    assert options(make("test", nvcc=True)) == {"CUDA": "ON", **found}


LOOK = """
import site, sys
site.addsitedir(sys.argv[1])
import slimfast
print(slimfast.__file__)
for name in ("benchmarks", "tests", "tools"):
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        print(name)
"""


def test_an_editable_install_brings_nothing_but_slimfast(tmp_path: Path) -> None:
    """Built as pip builds it, but for the compiling, and unpacked where pip would."""
    pytest.importorskip("scikit_build_core")
    backend = ROOT / "tools" / "backend"
    build = "import slimfast_build, sys; slimfast_build.build_editable(sys.argv[1], {'wheel.cmake': 'false'})"
    surroundings = {**os.environ, "PYTHONPATH": str(backend), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=surroundings, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
        (record,) = [name for name in file.namelist() if name.endswith("/RECORD")]
        listed = {
            path: (digest, size) for path, digest, size in csv.reader(file.read(record).decode().splitlines())
        }
        for name in file.namelist():
            digest = base64.urlsafe_b64encode(hashlib.sha256(file.read(name)).digest()).decode().rstrip("=")
            expected = ("", "") if name == record else (f"sha256={digest}", str(file.getinfo(name).file_size))
            assert listed.pop(name) == expected, name
    assert listed == {}
    del surroundings["PYTHONPATH"]
    command = [sys.executable, "-I", "-c", LOOK, str(site)]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(ROOT / "slimfast" / "__init__.py")]


@pytest.mark.parametrize("target", ["demo", "test"])
@pytest.mark.parametrize("wish", ["ON", "OFF"])
def test_a_wish_for_the_cuda_kernels_is_passed_on(make: Make, target: str, wish: str) -> None:
    assert options(make(target, nvcc=True, SLIMFAST_CUDA=wish))["CUDA"] == wish
    assert options(make(target, f"SLIMFAST_CUDA={wish}", nvcc=True))["CUDA"] == wish


def test_what_is_installed_is_installed_again_only_for_a_change(make: Make, tmp_path: Path) -> None:
    for name in (".tools", ".test-AUTO", ".demo-AUTO"):
        (tmp_path / name).touch()
    source, dependencies = ("-W", "csrc/cpu/CMakeLists.txt"), ("-W", "pyproject.toml")
    for target in ("build", "demo"):
        assert "pip install" not in make(target)
        assert options(make(target, "SLIMFAST_CUDA=ON"))["CUDA"] == "ON"
        assert options(make(target, *source))
        assert "slimfast[" not in make(target, *source)
        assert "slimfast[" in make(target, *source, *dependencies)


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
