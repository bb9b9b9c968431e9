"""Measure every op and the whole pipeline: ``python -m benchmarks.run [--suite cpu|gpu] [--ops ...]
[--quick]``.

One JSON file for each op into ``benchmarks/results``; ``python -m benchmarks.tables`` makes the tables from
them. Exit status 1 where a result of ours is wrong, 2 where the suite cannot run here.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.ops import (
    calibrated,
    cholesky_solve,
    covariance,
    eigvalsh,
    gather,
    moments,
    pipeline,
    pivoted_cholesky,
    spectra,
)
from benchmarks.roofline import Roofline, measure_roofline
from benchmarks.stamp import ROOT, stamp
from benchmarks.timing import OURS, Row, Run, kernel_times, measure
from slimfast.storage.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results"
# In the order they run: what the tables need most comes first, should the time run out.
OPS: dict[str, ModuleType] = {
    module.OP: module
    for module in (
        spectra,
        eigvalsh,
        covariance,
        moments,
        cholesky_solve,
        gather,
        pivoted_cholesky,
        pipeline,
        calibrated,
    )
}
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
SUITES = tuple(DEVICES)
# Seconds for the rounds of one row, and minutes after which no row is started any more.
ROW_SECONDS = {"cpu": 4.0, "gpu": 2.0}
QUICK_SECONDS = 0.2
MINUTES = 7.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    device = DEVICES[options.suite]
    if device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.run: --suite gpu needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    options.json_dir.mkdir(parents=True, exist_ok=True)
    made = stamp(device)
    roofline = measure_roofline(device, quick=options.quick)
    print(_describe(made, roofline), flush=True)
    wrong = 0
    for name in options.ops:
        path = options.json_dir / f"{options.suite}-{name}.json"
        result = {"suite": options.suite, "op": name, "quick": options.quick, "stamp": made}
        result |= {"roofline": roofline.to_json(), "rows": []}
        done = _done(path, result) if options.resume else {}
        rows = [row for row in OPS[name].rows(options.suite) if row.quick or not options.quick]
        for row in rows:
            if row.name in done or not fnmatch.fnmatchcase(row.name, options.only):
                continue
            if time.monotonic() > deadline:
                measured = _not_measured(row, "out of time")
            else:
                measured = _measure(OPS[name], row, options.suite, device, roofline, options.quick)
            done[row.name] = measured
            result["rows"] = [done[other.name] for other in rows if other.name in done]
            # After every row, so that a run that is cut off leaves what it has, and what others had before.
            with atomic_path(path) as beside:
                beside.write_text(json.dumps(result, indent=1) + "\n")
            wrong += not {"wrong", "failed"}.isdisjoint(measured["variants"][OURS])
    return 1 if wrong else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--quick", action="store_true", help="a few rows and rounds, to see that it works")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that this commit has measured here already"
    )
    parser.add_argument(
        "--only", default="*", metavar="GLOB", help="rows of these names alone, as 'resnet50, 1 thread*'"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start no row after so many minutes")
    parser.add_argument("--json-dir", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args(arguments)


def _describe(made: dict[str, Any], roofline: Roofline) -> str:
    machine = made["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads"
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in roofline.products.items())
    return f"{where}: {rates}, copy {roofline.copy / 1e9:,.0f} GB/s; load {machine['load']}"


def _done(path: Path, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that an earlier run of the same commit on the same machine has measured already."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if not earlier or earlier["quick"] != result["quick"] or _origin(earlier) != _origin(result):
        return {}
    return {row["name"]: row for row in earlier["rows"] if "seconds" in row["variants"][OURS]}


def _origin(result: dict[str, Any]) -> tuple[Any, ...]:
    made = result["stamp"]
    return made["commit"], made["machine"]["cpu"], made["machine"]["gpu"], made["versions"]


def _measure(
    module: ModuleType, row: Row, suite: str, device: str, roofline: Roofline, quick: bool
) -> dict[str, Any]:
    """One row; what there is no memory for is said to be not measured, and what cannot be set up to have
    failed: the others go on.
    """
    start = time.monotonic()
    try:
        case = module.case(row, device, roofline)
    except torch.OutOfMemoryError as error:
        return _not_measured(row, str(error).splitlines()[0])
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{module.OP:<17}{row.name:<42} failed: {told}", flush=True)
        return _not_measured(row, told, word="failed")
    measured = measure(row, case, seconds=QUICK_SECONDS if quick else ROW_SECONDS[suite])
    ours = case.variants[OURS]
    if device == "cuda" and "seconds" in measured["variants"][OURS] and not isinstance(ours, str):
        measured["kernels"] = _profiled(ours)
    del case, ours
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    print(f"{module.OP:<17}{_told(measured)}   [{time.monotonic() - start:.0f} s]", flush=True)
    return measured


def _profiled(ours: Run) -> list[dict[str, Any]] | dict[str, str]:
    """The times of its kernels; a machine without a profiler has none, and goes on."""
    try:
        return kernel_times(ours)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def _not_measured(row: Row, reason: str, *, word: str = "not measured") -> dict[str, Any]:
    return {"name": row.name, "variants": {OURS: {word: reason}}, "bound": None, "facts": {}}


def _told(row: dict[str, Any]) -> str:
    """One line of progress: our time, and how many times as long the others took."""
    variants = row["variants"]
    ours = variants[OURS].get("seconds")
    if ours is None:
        return f"{row['name']:<42} {variants[OURS]}"
    ratios = "  ".join(
        f"{name} {variant['seconds'] / ours:.2f} x"
        for name, variant in variants.items()
        if name != OURS and "seconds" in variant
    )
    return f"{row['name']:<42} {1e3 * ours:10.3f} ms  {ratios}"


if __name__ == "__main__":
    sys.exit(main())
