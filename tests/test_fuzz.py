"""Fuzzing in the small: what was once found stays mended, and every target runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz import __main__ as runner
from fuzz import files, structure
from fuzz.child import State, _edited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slimfast

ROOT = Path(slimfast.__file__).parents[1]
FOUND = sorted((Path(__file__).parent / "fuzz" / "crashes").glob("*/*"))
# The same cases every time: `make fuzz` is for new ones.
SMALL = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path) -> None:
    files.READERS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", files.READERS)
def test_readers_of_files(name: str) -> None:
    sound = files.seeds(name)
    for content in sound:
        files.READERS[name](content)

    @SMALL
    @given(_edited(st.sampled_from(sound)))
    def run(content: bytes) -> None:
        files.READERS[name](content)

    run()


@pytest.mark.parametrize("name", structure.TARGETS)
def test_documents_and_kernels(name: str) -> None:
    read, values = structure.TARGETS[name]

    @SMALL
    @given(values)
    def run(value: Any) -> None:
        read(value)

    run()


def test_a_message_of_two_lines_is_a_finding() -> None:
    class Careless(slimfast.SlimfastError):
        def __str__(self) -> str:
            return "two\nlines"

    with pytest.raises(AssertionError, match="not one line"), files.one_line():
        raise Careless
    with (
        pytest.raises(AssertionError, match=r"model\.pth is not in 'no such file'"),
        files.one_line("model.pth"),
    ):
        raise slimfast.SlimfastError("no such file")
    with pytest.raises(KeyError), files.one_line():
        raise KeyError


def test_the_state_outlives_what_was_run(tmp_path: Path) -> None:
    def crash(value: bytes) -> None:
        if value == b"third":
            raise ValueError

    watched = State(tmp_path / "state").watch(crash)
    watched(b"first")
    watched(b"second")
    with pytest.raises(ValueError, match=r"^$"):
        watched(b"third")
    count, slowest, content = State(tmp_path / "state").read()
    assert (count, content) == (3, b"third")
    assert slowest > 0


def test_the_runner_counts_and_sums_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--target", "gather", "--executions", "20"]
    for _ in range(2):
        subprocess.run(
            [*command, "--folder", str(tmp_path), "--output", str(tmp_path / "fuzz.json")],
            check=True,
            cwd=ROOT,
        )
    summary = json.loads((tmp_path / "fuzz.json").read_text())
    assert summary["by_target"] == {"gather": summary["executions"]}
    assert summary["executions"] >= 40
    assert [run["finding"] for run in summary["runs"]] == ["", ""]
    # What was run stands beside each run; one without it was before that was so.
    assert {run["commit"] for run in summary["runs"]} == set(summary["commits"]["gather"])
    del summary["runs"][0]["commit"]
    (tmp_path / "fuzz.json").write_text(json.dumps(summary))
    runner._add(tmp_path / "fuzz.json", runner.Result("gather", "hypothesis", False, 7, 1.0, 0.1, commit="a"))
    again = json.loads((tmp_path / "fuzz.json").read_text())
    assert again["commits"]["gather"][0] == ""
    assert "a" in again["commits"]["gather"]
    assert again["executions"] == summary["executions"] + 7
