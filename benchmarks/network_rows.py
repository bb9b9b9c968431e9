"""A row for each network and batch: what is asked for is measured, one after the other, and goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS
from benchmarks.stamp import stamp
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path


def parser_of(module: str, about: str, batches: Sequence[int]) -> argparse.ArgumentParser:
    """Make the parser of ``python -m benchmarks.MODULE``, whose results go to ``MODULE.json``."""
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
    that is refused has the reason in its row.
    """
    prepare_torchvision()
    known = json.loads(options.results.read_text())["rows"] if options.results.exists() else {}
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
                    known[row] = measured(name, batch)
                except SlimfastError as error:
                    known[row] = {"failed": str(error)}
            print(f"{row}: {json.dumps(known[row])}", flush=True)
            ordered = {key: known[key] for key in dict.fromkeys([*names, *known]) if key in known}
            with atomic_path(options.results) as beside:
                beside.write_text(json.dumps({"stamp": made, "rows": ordered}, indent=1) + "\n")
