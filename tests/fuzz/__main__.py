"""The runner: every target in a process of its own, watched, and a summary of what was executed."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.child import State, use_kernels_of
from tests.fuzz.child import main as run_target

if os.environ.get("SLIMFAST_FUZZ_CPU"):
    use_kernels_of(os.environ["SLIMFAST_FUZZ_CPU"])
from benchmarks.stamp import stamp
from tests.fuzz import files, structure

# An execution takes milliseconds; the machine may be busy.
LIMIT_S = 120.0


@dataclass(frozen=True)
class Result:
    """What became of a target in one run.

    ``finding`` is empty, or says what was found; its input is in ``found_in``. ``commit`` is what was run,
    empty for the runs before it was noted, with a + where files had changed.
    """

    target: str
    engine: str
    sanitized: bool
    executions: int
    seconds: float
    slowest_s: float
    finding: str = ""
    found_in: str = ""
    commit: str = ""


def fuzz(target: str, executions: int, seed: int, folder: Path) -> Result:
    """Execute a target so often, or until something is found; ``folder`` keeps the corpus between runs."""
    guided = target in files.READERS and importlib.util.find_spec("atheris") is not None
    engine = "atheris" if guided else "hypothesis"
    state_path, log_path = folder / f"{target}.state", folder / f"{target}.log"
    state_path.unlink(missing_ok=True)
    state = State(state_path)
    start = time.monotonic()
    child = _fork(log_path, target, executions, seed, state_path, folder / target, engine)
    status, hung = _watch(child, state)
    count, slowest, content = state.read()
    finding = found_in = ""
    if hung or status:
        told = log_path.read_text(errors="replace").strip().splitlines()
        lines = [line for line in told if "Error" in line or "ERROR" in line] or told[-1:]
        finding = f"no answer in {LIMIT_S:.0f} s" if hung else (lines[0].strip() if lines else "crash")
        path = folder / f"{target}-{hashlib.sha256(content).hexdigest()[:12]}"
        path.write_bytes(content)
        found_in = path.name
    sanitized = bool(os.environ.get("SLIMFAST_FUZZ_CPU"))
    seconds = round(time.monotonic() - start, 1)
    commit = stamp("cpu")["commit"] or ""
    return Result(target, engine, sanitized, count, seconds, round(slowest, 3), finding, found_in, commit)


def _fork(log: Path, *arguments: Any) -> int:
    """A child, with what is imported here, that runs a target; its output goes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        run_target(*arguments)
        status = 0
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _watch(child: int, state: State) -> tuple[int, bool]:
    """The status a child ends with, and whether it had to be killed because an execution did not end."""
    last, since = 0, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        time.sleep(0.2)
        count = state.read()[0]
        if count != last:
            last, since = count, time.monotonic()
        if time.monotonic() - since > LIMIT_S:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True


def main() -> int:
    """Run the command line; 1 where something was found."""
    names = [*files.READERS, *structure.TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000, help="of each target (default 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=names, help="only this one; repeat it for more")
    parser.add_argument("--folder", type=Path, help="corpus, logs and findings (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="summary to add to, as JSON")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="slimfast-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in given.target or names:
        result = fuzz(name, given.executions, given.seed, folder)
        print(json.dumps(asdict(result)), flush=True)
        failed |= bool(result.finding)
        if given.output is not None:
            _add(given.output, result)
    shutil.rmtree(files.folder(), ignore_errors=True)
    if failed:
        print(f"the inputs are in {folder}", file=sys.stderr)
    return int(failed)


def _add(path: Path, result: Result) -> None:
    """One more run in a summary, with the executions of each target over all runs, and their commits."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs.append(asdict(result))
    executions: dict[str, int] = {}
    commits: dict[str, list[str]] = {}
    for run in runs:
        target = run["target"]
        executions[target] = executions.get(target, 0) + run["executions"]
        commits[target] = sorted({*commits.get(target, []), run.get("commit", "")})
    counts = {"executions": sum(executions.values()), "by_target": executions, "commits": commits}
    counts["runs"] = runs
    summary = {**stamp("cpu"), **counts}
    path.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
