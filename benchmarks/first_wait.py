"""How long a newcomer waits, from clone to demo: ``python -m benchmarks.first_wait [COMMIT ...]``.

Each commit is cloned to an empty folder, where ``make demo`` installs what it needs, compiles and runs the
demo; then it runs once more with all of that there. Packages come from pip's index as it is set up, and pip
finds none that it kept. A commit's clone, installation and demo are one row: wall clock and the processor
time of everything that ran, in seconds. Rows of one round follow one another on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import NOT_YET, Table, rows_of
from benchmarks.run import RESULTS
from benchmarks.stamp import ROOT, add_row, made_at, stamp
from slimfast.storage.atomic import atomic_path

# The last commit before the package was made easier to pick up.
BEFORE = "6dc553e"
_STEPS = {"clone": "clone", "first": "install, compile, demo", "again": "the demo alone"}


def waited(commit: str) -> dict[str, Any]:
    """Clone a commit and run its demo, twice: seconds of each step.

    Raises:
        subprocess.CalledProcessError: If a step fails; what it printed is in the error.
    """
    with tempfile.TemporaryDirectory(prefix="first-wait-") as folder:
        place, kept = Path(folder) / "slimfast", Path(folder) / "pip"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PIP_CACHE_DIR"] = str(kept)

        def timed(*command: str, cwd: Path) -> dict[str, float]:
            begun, used = time.monotonic(), _processor_time()
            subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True)
            return {"wall_s": time.monotonic() - begun, "processor_s": _processor_time() - used}

        row = {"asked": commit, "commit": _hash(commit)}
        clone = timed("git", "clone", "-q", str(ROOT), str(place), cwd=Path(folder))
        timed("git", "-c", "advice.detachedHead=false", "checkout", "-q", row["commit"], cwd=place)
        return row | {
            "clone": clone,
            "first": timed("make", "demo", cwd=place),
            "again": timed("make", "demo", cwd=place),
        }


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _hash(commit: str) -> str:
    done = subprocess.run(
        ("git", "rev-parse", "--short=12", f"{commit}^{{commit}}"),
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def table_text(result: Mapping[str, Any]) -> str:
    """Show the wait at each commit, and how it compares with that at the first one."""
    rows = result.get("rows", [])
    if not rows:
        return f"{NOT_YET}\n"
    head: list[Sequence[str]] = [
        ("commit", "runs", *_STEPS.values(), "in all, wall clock", "in all, processor", "of the first row"),
        ("---", *["--:"] * (len(_STEPS) + 4)),
    ]
    base: float | None = None
    for commit in dict.fromkeys(row["commit"] for row in rows):
        own = [row for row in rows if row["commit"] == commit]

        def median(step: str, clock: str, own: Sequence[Mapping[str, Any]] = own) -> float:
            return statistics.median(row[step][clock] for row in own)

        wall = median("clone", "wall_s") + median("first", "wall_s")
        used = median("clone", "processor_s") + median("first", "processor_s")
        base = base or wall
        steps = (f"{median(step, 'wall_s'):.1f} s" for step in _STEPS)
        head.append((commit, str(len(own)), *steps, f"{wall:.0f} s", f"{used:.0f} s", f"{wall / base:.2f}"))
    machine = result["stamp"]["machine"]
    where = f"{machine['cpu']}, {machine['threads']} threads, load {machine['load']:g} at the start"
    return (
        f"{rows_of(head)}\n\nWall clock, medians. In all: the clone and the first `make demo`, without "
        f"anything that pip has kept. {where}; {made_at(result)}.\n"
    )


TABLES = (Table("first-wait", ("first-wait.json",), table_text),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the commits that are asked for, round after round."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_wait", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "commits", nargs="*", metavar="COMMIT", help=f"what to clone; {BEFORE} and HEAD unless told"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    parser.add_argument("--results", type=Path, default=RESULTS / "first-wait.json", help="where they go")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"stamp": stamp("cpu"), "rows": []}
    for _ in range(options.rounds):
        for commit in options.commits or (BEFORE, "HEAD"):
            row = waited(commit)
            print(json.dumps(row), flush=True)
            add_row(result, row, result["stamp"])
            with atomic_path(options.results) as beside:
                beside.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
