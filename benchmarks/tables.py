"""The tables of README and docs, made from the results: ``python -m benchmarks.tables [--check]``.

A table stands between ``<!-- table:cpu-eigvalsh -->`` and ``<!-- /table -->``. What its name means, which
files in ``benchmarks/results`` it is of and how it is made of them is declared beside each benchmark, in its
``TABLES``; what was not measured says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import first_wait, latency, memory
from benchmarks.accuracy.studies import (
    cifar10_tables,
    decoder_tables,
    equal_time_tables,
    head_dims_tables,
    minilm_tables,
    oneshot_tables,
    recovery_tables,
    summary_tables,
)
from benchmarks.large import backbone, calibrated, scaling, streamed
from benchmarks.markdown import Table
from benchmarks.ops import tables as ops
from benchmarks.ops import widths
from benchmarks.run import RESULTS
from benchmarks.stamp import ROOT
from benchmarks.zoo import tables as zoo
from benchmarks.zoo import traces

MARKED = re.compile(r"(<!-- table:([\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
DECLARING = (
    ops,
    widths,
    backbone,
    streamed,
    scaling,
    calibrated,
    cifar10_tables,
    oneshot_tables,
    recovery_tables,
    minilm_tables,
    head_dims_tables,
    decoder_tables,
    equal_time_tables,
    summary_tables,
    zoo,
    traces,
    latency,
    memory,
    first_wait,
)
TABLES: tuple[Table, ...] = tuple(table for module in DECLARING for table in module.TABLES)


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every table in it made anew; ``ValueError`` for a name that is no table."""
    return MARKED.sub(lambda match: f"{match[1]}{made(match[2], results)}{match[3]}", text)


def made(name: str, results: Path) -> str:
    """The table of that name, as the benchmark that declares it makes it."""
    for table in TABLES:
        text = table.fill(name, results)
        if text is not None:
            return text
    raise ValueError(f"table {name}: expected one of {', '.join(table.name for table in TABLES)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if a table is old"
    )
    options = parser.parse_args(arguments)
    old = []
    for path in documents():
        text = path.read_text()
        made = fill(text)
        if made == text:
            continue
        old.append(path.relative_to(ROOT))
        if not options.check:
            path.write_text(made)
    verb = "old tables" if options.check else "wrote tables"
    for path in old:
        print(f"{verb}: {path}")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
