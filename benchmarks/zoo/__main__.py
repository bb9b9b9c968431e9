"""Slim every network of a zoo, each in processes of its own: ``python -m benchmarks.zoo [--zoo families]``.

The results stand in ``benchmarks/results/zoo.json``, one row a network, written after each of them; what has
a row is not run again unless told. ``python -m benchmarks.tables`` makes the tables of
``docs/evidence/zoo.md``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS
from benchmarks.stamp import stamp
from benchmarks.zoo import stages
from benchmarks.zoo.networks import ZOOS, missing
from benchmarks.zoo.processes import Limits, run_limited, start_server
from slimfast.storage.atomic import atomic_path


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    names = [
        name
        for zoo in options.zoo
        for name in ZOOS[zoo]
        if any(fnmatch.fnmatchcase(name.partition(":")[2], glob) for glob in options.only)
    ]
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    waiting = [
        n
        for n in dict.fromkeys(names)
        if options.again or not _is_done(results.get(n), options.onnx, options.peer)
    ]
    if options.list:
        print("\n".join(waiting))
        return 0
    start_server()
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    limits = Limits(options.limit_s, int(options.limit_gb * 1e9), threads)
    with ThreadPoolExecutor(options.jobs) as pool:
        known = {} if options.again else results
        rows = {pool.submit(measure, n, limits, options.onnx, options.peer, known.get(n)): n for n in waiting}
        for count, row in enumerate(as_completed(rows), 1):
            name = rows[row]
            results[name] = carried(row.result(), results.get(name, {}))
            with atomic_path(options.results) as beside:
                beside.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            print(f"[{count}/{len(waiting)}] {name}: {describe(results[name])}", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--zoo", nargs="+", choices=ZOOS, default=["families"], metavar="ZOO", help=", ".join(ZOOS)
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="GLOB", help="only networks of these names"
    )
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time; they share the cores")
    parser.add_argument("--threads", type=int, help="of each network; as many as the jobs leave, unless told")
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds of each process")
    parser.add_argument("--limit-gb", type=float, default=10.0, help="memory of each process")
    parser.add_argument("--onnx", action="store_true", help="export to ONNX too")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave torch-pruning out")
    parser.add_argument(
        "--again", action="store_true", help="run again what has a row already; what is not asked for stays"
    )
    parser.add_argument("--list", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS / "zoo.json", help="where the results go")
    return parser.parse_args(arguments)


def _is_done(row: dict[str, Any] | None, onnx: bool, peer: bool) -> bool:
    """Whether a row holds all that is asked for now."""
    return row is not None and not (onnx and _lacks_onnx(row)) and ("peer" in row or not peer)


def _lacks_onnx(row: dict[str, Any]) -> bool:
    """Whether a network that could be exported has not been."""
    return "onnx" not in row["stages"] and "seconds" in row["stages"].get("reload", {})


def measure(
    name: str, limits: Limits, onnx: bool, peer: bool, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The row of one network: what happened in each stage, and to the peer.

    To a row that is ``known`` only what it lacks is added, and told to be of another time.
    """
    row = _slimmed(name, limits) if known is None else known
    if onnx and _lacks_onnx(row):
        with tempfile.TemporaryDirectory() as folder:
            exported = run_limited(stages.onnx, (name, folder), limits)
        apart = {} if known is None else {"apart": True}
        row = row | {"stages": row["stages"] | {s: found | apart for s, found in exported.items()}}
    if peer and "peer" not in row and missing(name) is None:
        row = row | {"peer": _peer(name, limits), **({} if known is None else {"apart": True})}
    return row


def carried(row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A row that was run again, with the export and the peer's verdict of the row before where it has none.

    They are told to be of another time.
    """
    exported = before.get("stages", {}).get("onnx")
    if exported is not None and _lacks_onnx(row):
        row = row | {"stages": row["stages"] | {"onnx": exported | {"apart": True}}}
    if "peer" in before and "peer" not in row:
        row = row | {"peer": before["peer"], "apart": True}
    return row


def _slimmed(name: str, limits: Limits) -> dict[str, Any]:
    made = stamp("cpu")
    made["machine"]["threads"] = limits.threads
    row: dict[str, Any] = {"limit_s": limits.seconds, "limit_gb": limits.memory / 1e9, "stamp": made}
    package = missing(name)
    if package is not None:
        return row | {"stages": {"build": {"not measured": f"{package} is not installed"}}}
    with tempfile.TemporaryDirectory() as folder:
        row["stages"] = run_limited(stages.slim, (name, folder), limits)
        if "seconds" in row["stages"].get("save", {}):
            row["stages"] |= run_limited(stages.reload, (name, folder), limits)
    return row


def _peer(name: str, limits: Limits) -> dict[str, Any]:
    package = missing("torch_pruning")
    if package is not None:
        return {"build": {"not measured": "torch-pruning is not installed"}}
    return run_limited(stages.peer, (name,), limits)


def describe(row: dict[str, Any]) -> str:
    """One line of progress: what failed, else the seconds."""
    failed = [f"{stage}: {found['failed']}" for stage, found in row["stages"].items() if "failed" in found]
    spent = [found.get("seconds", 0.0) for found in row["stages"].values()]
    return "; ".join(failed) or f"all well, {sum(spent):.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
