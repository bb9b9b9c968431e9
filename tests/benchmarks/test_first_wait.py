"""The benchmark of a newcomer's wait: what it clones and runs, and its table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import first_wait

STAMP = {
    "machine": {"cpu": "a board", "isa": "avx2", "threads": 2, "load": 0.1},
    "versions": {"torch": "2.0"},
    "date": "2026-01-01",
    "commit": "abc",
}
DEMO = """demo:
\ttest -z "$$PYTHONPATH" && test -n "$$PIP_CACHE_DIR" && test ! -e "$$PIP_CACHE_DIR"
\tdate >> demo.txt
"""


def committed(folder: Path, makefile: str) -> str:
    (folder / "Makefile").write_text(makefile)
    person = ("-c", "user.name=someone", "-c", "user.email=someone@example.com")
    for command in (("add", "."), (*person, "commit", "-qm", "a demo")):
        subprocess.run(("git", *command), cwd=folder, check=True)
    done = subprocess.run(
        ("git", "rev-parse", "--short=12", "HEAD"), cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    subprocess.run(("git", "init", "-q"), cwd=folder, check=True)
    monkeypatch.setattr(first_wait, "ROOT", folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_each_commit_is_cloned_and_its_demo_run_twice(repository: Path, tmp_path: Path) -> None:
    old = committed(repository, DEMO)
    new = committed(repository, DEMO + "\tsleep 0\n")
    results = tmp_path / "results.json"
    assert first_wait.main([old, "HEAD", "--results", str(results)]) == 0
    result = json.loads(results.read_text())
    assert [(row["asked"], row["commit"]) for row in result["rows"]] == [(old, old), ("HEAD", new)]
    for row in result["rows"]:
        for step in ("clone", "first", "again"):
            assert set(row[step]) == {"wall_s", "processor_s"}
            assert row[step]["wall_s"] > 0
    assert not (repository / "demo.txt").exists()
    text = first_wait.table_text(result)
    assert f"| {old} | 1 |" in text
    assert f"| {new} | 1 |" in text


def test_a_demo_that_fails_leaves_no_row(repository: Path, tmp_path: Path) -> None:
    committed(repository, "demo:\n\tfalse\n")
    results = tmp_path / "results.json"
    with pytest.raises(subprocess.CalledProcessError):
        first_wait.main(["HEAD", "--results", str(results)])
    assert not results.exists()


def test_the_table_shows_medians_and_compares_with_the_first_commit() -> None:
    def row(commit: str, wall: float) -> dict[str, object]:
        step = {"wall_s": wall, "processor_s": wall / 2}
        return {"commit": commit, "clone": {"wall_s": 1.0, "processor_s": 1.0}, "first": step, "again": step}

    rows = [row("old", 99.0), row("new", 39.0), row("old", 199.0), row("new", 59.0)]
    text = first_wait.table_text({"stamp": STAMP, "rows": rows})
    assert "| old | 2 | 1.0 s | 149.0 s | 149.0 s | 150 s | 76 s | 1.00 |" in text
    assert "| new | 2 | 1.0 s | 49.0 s | 49.0 s | 50 s | 26 s | 0.33 |" in text
    assert first_wait.table_text({}) == "Not measured yet.\n"
