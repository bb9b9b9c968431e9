"""A row for each network and batch: what is asked for is measured, one after the other, and goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS
from benchmarks.stamp import stamp
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path


def parser_of(module: str, about: str, batches: Sequence[int]) -> argparse.ArgumentParser:
    """Make the parser of a module of ``benchmarks``, whose results go to a file of its name."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="GLOB", help="only networks of these names"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=list(batches), help="examples in a forward")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    path = RESULTS / f"{module}.json"
    parser.add_argument("--results", type=Path, default=path, help="where the results go")
    return parser


def measure_rows(
    options: argparse.Namespace,
    networks: Iterable[str],
    batches: Sequence[int],
    measured: Callable[[str, int], dict[str, Any]],
) -> None:
    """Measure the rows that are asked for and not there, or failed, and write each as it is done; a network
    that is refused has the reason in its row. Each row has the commit and the date of its own.
    """
    prepare_torchvision()
    before = json.loads(options.results.read_text()) if options.results.exists() else {"rows": {}}
    known = {name: {**_when(before["stamp"]), **row} for name, row in before["rows"].items()}
    made, networks = stamp("cpu"), list(networks)
    names = [f"{name}, batch {batch}" for name in networks for batch in batches]
    for name in networks:
        for batch in options.batches:
            row = f"{name}, batch {batch}"
            wanted = any(fnmatch.fnmatchcase(name, glob) for glob in options.only)
            if not wanted or (row in known and "failed" not in known[row] and not options.again):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = measured(name, batch)
                except SlimfastError as error:
                    found = {"failed": str(error)}
            known[row] = {**_when(made), **found}
            print(f"{row}: {json.dumps(known[row])}", flush=True)
            ordered = {key: known[key] for key in dict.fromkeys([*names, *known]) if key in known}
            with atomic_path(options.results) as beside:
                beside.write_text(json.dumps({"stamp": made, "rows": ordered}, indent=1) + "\n")


def _when(made: Mapping[str, Any]) -> dict[str, str]:
    return {"commit": made["commit"], "date": made["date"]}


def origin(result: Mapping[str, Any]) -> str:
    """What the tables say of a result's origin: machine, version of torch, and the commits of its rows."""
    made = result["stamp"]
    rows = [{**_when(made), **row} for row in result["rows"].values()]
    whens = {(row["date"], row["commit"]) for row in rows}
    commits = ", ".join(f"{commit} ({date})" for date, commit in sorted(whens))
    machine = made["machine"]
    where = f"{machine['cpu']} ({machine['isa']}), load {machine['load']:g} at the start of the last run"
    return f"{where}; torch {made['versions']['torch']}, commit{'s' * (len(whens) > 1)} {commits}"
