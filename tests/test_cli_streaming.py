"""`slimfast spectra` and `plan` from files that stay on the disk, resumed, and in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import NET, files, weights, workshop  # noqa: F401 (fixtures)

from slimfast.cli import main

PLAN = ["plan", NET, "--input", "3x6x6", "--macs", "0.5"]


@pytest.mark.usefixtures("workshop")
def test_a_streamed_plan_is_the_plan(weights: str) -> None:  # noqa: F811
    assert main([*PLAN, "--weights", weights, "-o", "a.json"]) == 0
    for _ in range(2):
        assert main([*PLAN, "--weights", weights, "--stream", "--resume", "side", "-o", "b.json"]) == 0
        assert Path("b.json").read_text() == Path("a.json").read_text()
    assert files() == {weights, "a.json", "b.json", "side"}


@pytest.mark.usefixtures("workshop")
def test_streamed_spectra_are_the_spectra(weights: str) -> None:  # noqa: F811
    common = ["spectra", NET, "--input", "3x6x6", "--weights", weights]
    assert main([*common, "-o", "a.safetensors"]) == 0
    assert main([*common, "--stream", "--resume", "side", "-o", "b.safetensors"]) == 0
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    assert main(["spectra", weights, "--resume", "side"]) == 0


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stream"], "--stream: expected --weights and --device cpu, got None and cpu"),
        (["--resume", "nowhere/side"], "cannot write nowhere/side: the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, *arguments]) == 2
    assert capsys.readouterr().err == f"slimfast: {reason}\n"


@pytest.mark.usefixtures("workshop")
def test_a_launch_of_two_processes_writes_the_plan_once(weights: str) -> None:  # noqa: F811
    assert main([*PLAN, "--weights", weights, "-o", "a.json"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "slimfast", *PLAN, "--weights", weights, "--stream", "--json", "-o", "b.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == Path("a.json").read_text()
    assert Path("b.json").read_text() == done.stdout
    assert done.stderr.count("wrote b.json") == 1
