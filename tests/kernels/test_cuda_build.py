"""What nvcc says of the CUDA kernels: no spills, registers within the launch. Slow at first; needs nvcc."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support.paths import ROOT

SOURCES = ROOT / "csrc" / "cuda"
KERNELS = sorted(p.name for p in SOURCES.glob("*.cu"))
# Threads of a block, as each kernel launches it; with it goes the limit of 65536 registers a multiprocessor.
THREADS = {
    "moments": 256,
    "traces_of": 256,
    "tiles_of": 256,
    "finish_of": 256,
    "reduce_to_tridiagonal": 384,
    "largest_of_rows": 256,
    "copy_to_panels": 256,
    "factor_of_panel": 256,
    "multiply_tiles": 128,
    "sum_products": 256,
    "finish_rows": 256,
    "chase_bulgesIf": 512,
    "chase_bulgesId": 256,
    "eigenvalues_of": 128,
    "warp_per_matrix": 128,
    "gather_tiles": 256,
    "factorise_all": 512,
    "sums_of": 256,
    "join_means": 256,
    "products_of": 256,
    "finish_moments": 256,
    "load_systems": 256,
    "eliminate_columns": 256,
    "update_tiles": 256,
    "substitute_back": 256,
    "store_solutions": 256,
}
# What nvcc compiles, and what that includes.
LANGUAGE = (".cu", ".cuh", ".hpp")
NVCC = shutil.which("nvcc")
COMPILER = [str(NVCC), "-std=c++17", "-O3", "-I", str(SOURCES / "device")]

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


class Report(NamedTuple):
    """What ptxas says of one kernel."""

    name: str
    registers: int
    stack: int
    spilled: int


def compile_report(source: str, architecture: str) -> str:
    """ptxas -v for one file; kept beside the system's temporary files until a source changes."""
    folders = (SOURCES, SOURCES / "device", SOURCES.parent / "common")
    texts = [path.read_bytes() for f in folders for path in sorted(f.iterdir()) if path.suffix in LANGUAGE]
    key = hashlib.sha256(b"\0".join([source.encode(), architecture.encode(), *texts])).hexdigest()[:20]
    kept = Path(tempfile.gettempdir()) / f"slimfast-ptxas-{key}.txt"
    if kept.exists():
        return kept.read_text()
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMPILER, f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "-o", f"{folder}/out.cubin", str(SOURCES / source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        partial = Path(folder) / "report"
        partial.write_text(done.stderr)
        shutil.move(partial, kept)
    return done.stderr


def reports(text: str) -> list[Report]:
    found = []
    for block in text.split("Compiling entry function")[1:]:
        mangled = block.split("'")[1]
        name = next((name for name in THREADS if re.search(rf"\d{name}(I|E)", mangled)), mangled)
        numbers = {
            key: int(match[1]) if (match := re.search(pattern, block)) else 0
            for key, pattern in {
                "stack": r"(\d+) bytes stack frame",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
                "registers": r"Used (\d+) registers",
            }.items()
        }
        spilled = numbers["stores"] + numbers["loads"]
        found.append(Report(name, numbers["registers"], numbers["stack"], spilled))
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], list[Report]]:
    """Every kernel file for both architectures, two compilers at a time."""
    jobs = [(source, architecture) for source in KERNELS for architecture in ("sm_80", "sm_90")]
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda job: compile_report(*job), jobs)
    return {job: reports(text) for job, text in zip(jobs, texts, strict=True)}


def test_the_reader_sees_spills() -> None:
    text = "ptxas info : Compiling entry function '_ZN1a7momentsEPKl' for 'sm_90'\n"
    text += "    208 bytes stack frame, 80 bytes spill stores, 112 bytes spill loads\n"
    text += "ptxas info : Used 80 registers, used 1 barriers"
    assert reports(text) == [Report("moments", registers=80, stack=208, spilled=192)]


def test_every_kernel_is_reported(compiled: dict[tuple[str, str], list[Report]]) -> None:
    for architecture in ("sm_80", "sm_90"):
        names = {
            report.name for (_, where), found in compiled.items() if where == architecture for report in found
        }
        assert names == set(THREADS)


def test_no_kernel_spills_or_indexes_registers(compiled: dict[tuple[str, str], list[Report]]) -> None:
    bad = {
        job: report for job, found in compiled.items() for report in found if report.spilled or report.stack
    }
    assert bad == {}


def test_a_block_of_every_kernel_fits(compiled: dict[tuple[str, str], list[Report]]) -> None:
    for found in compiled.values():
        for report in found:
            assert report.registers * THREADS[report.name] <= 65536, report


def test_matrices_in_shared_memory_are_read_by_its_instructions() -> None:
    """The compiler must see where the pointers lead, or it pays for generic addresses."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "eigvalsh.ptx"
        command = [*COMPILER, "-arch=sm_90", "-ptx", "-o", str(ptx), str(SOURCES / "eigvalsh.cu")]
        subprocess.run(command, check=True, capture_output=True)
        text = ptx.read_text()
    entries = text.split(".entry ")[1:]
    in_block = [entry for entry in entries if re.match(r"\w*reduce_to_tridiagonalIfLb0E", entry)]
    assert len(in_block) == 1
    assert "st.shared.v4" in in_block[0]
    # Only the input is not in shared memory, and it is read one entry at a time.
    assert not re.search(r"\bld\.(global\.)?v4", in_block[0])
