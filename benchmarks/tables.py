"""The tables of README and docs, made from the results: ``python -m benchmarks.tables [--check]``.

A table stands between ``<!-- table:cpu-eigvalsh -->`` and ``<!-- /table -->``, named by suite and op. Its
rows are those that the op's file here lists, with "not measured" where there is no figure; ``avx512-OP`` is
of ``results/avx512/cpu-OP.json``, the CPU suite on a machine with AVX-512. A table named
``accuracy-NAME`` is of ``results/NAME.json``, from :mod:`benchmarks.accuracy`, ``accuracy-lost-NAME`` of
what in it did not help, and ``accuracy-brief-oneshot`` and ``accuracy-brief-recovery`` of the most telling
rows of several networks. One named ``zoo-NAME`` is of the networks of that name in ``results/zoo.json``, from
:mod:`benchmarks.zoo`, and ``zoo-times`` of where their time goes; ``backbone-SIZE`` is of
``results/backbone-SIZE.json``, ``scaling-processes`` of ``results/scaling.json``, and ``widths-real`` of
``results/widths.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.studies import brief
from benchmarks.accuracy.studies import tables as accuracy
from benchmarks.large import backbone, scaling
from benchmarks.ops import widths
from benchmarks.run import OPS, RESULTS, SUITES
from benchmarks.stamp import ROOT
from benchmarks.timing import BACKEND, BOUND, OURS, PEAK, Row, Target
from benchmarks.zoo import tables as zoo

MARKED = re.compile(r"(<!-- table:(?P<suite>[a-z0-9]+)-(?P<op>[\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
NOT_MEASURED = "not measured"
NO_BOUND = "no bound"
"""Of a bound that was passed, because it was taken from a rate that others of the machine exceed."""
ACCURACY = "accuracy"
LOST = "lost-"
BRIEF = "brief-"
ZOO = "zoo"
TIMES = "times"
BACKBONE = "backbone"
WIDTHS = "widths"
SCALING = "scaling"
AVX512 = "avx512"
"""The CPU suite on a second machine: ``benchmarks.run --json-dir benchmarks/results/avx512``."""
TITLES = {
    "torch": "plain PyTorch",
    "best": "best PyTorch",
    "cusolver": "cuSOLVER",
    "float32": "the same in float32",
    "torch_pruning": "torch-pruning",
    "cuda": "by CUDA C++",
    "triton": "by Triton",
    BOUND: "of the bound",
    PEAK: "peak memory",
}


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every table in it made anew; ``ValueError`` for a name that is no table."""

    def filled(match: re.Match[str]) -> str:
        suite, op = match["suite"], match["op"]
        if suite == ACCURACY and op.startswith(BRIEF):
            made = _brief(op.removeprefix(BRIEF), results)
        elif suite == ACCURACY:
            name = op.removeprefix(LOST)
            made = (accuracy.table if name == op else accuracy.lost)(_read(results / f"{name}.json"))
        elif suite == ZOO and op == TIMES:
            made = zoo.times("families", _read(results / "zoo.json"))
        elif suite == ZOO and op in zoo.ZOOS:
            made = zoo.table(op, _read(results / "zoo.json"))
        elif suite == BACKBONE and op in backbone.SIZES:
            made = backbone.table(_read(results / f"{suite}-{op}.json"))
        elif (suite, op) == (SCALING, "processes"):
            made = scaling.table(_read(results / "scaling.json"))
        elif (suite, op) == (WIDTHS, "real"):
            made = widths.table(_read(results / "widths.json"))
        elif suite in SUITES and op in OPS:
            made = table(suite, op, _read(results / f"{suite}-{op}.json"))
        elif suite == AVX512 and op in OPS:
            made = table("cpu", op, _read(results / AVX512 / f"cpu-{op}.json"))
        else:
            known = f"{'|'.join(SUITES)}-{'|'.join(OPS)}, {ACCURACY}-NAME or {ZOO}-{'|'.join(zoo.ZOOS)}"
            raise ValueError(f"table {suite}-{op}: expected {known}")
        return match[1] + made + match[4]

    return MARKED.sub(filled, text)


def _brief(kind: str, results: Path) -> str:
    """The table of all networks; ``ValueError`` for one that there is not."""
    if kind not in brief.TABLES:
        raise ValueError(f"table {ACCURACY}-{BRIEF}{kind}: expected {' or '.join(brief.TABLES)}")
    table_of, names = brief.TABLES[kind]
    found = [_read(results / f"{name}.json") for name in names]
    return table_of([result for result in found if result])


def _read(path: Path) -> dict[str, Any]:
    """A file of results; empty where nothing was measured."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def table(suite: str, op: str, result: Mapping[str, Any]) -> str:
    """A markdown table of one op, and a line on where it was measured."""
    module = OPS[op]
    measured = {row["name"]: row for row in result.get("rows", ())}
    rows: Sequence[Row] = module.rows(suite)
    columns: Sequence[str] = module.COLUMNS[suite]
    targets = any(row.targets for row in rows)
    head = ["", OURS, *(TITLES[column] for column in columns), *(["target"] if targets else [])]
    lines = [head, ["---", *["--:"] * (len(columns) + 1), *(["---"] if targets else [])]]
    for row in rows:
        found = measured.get(row.name, {})
        cells = [row.name, _time(found), *(_cell(found, column) for column in columns)]
        lines.append([*cells, *([_targets(row, found)] if targets else [])])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{_where(result)}\n"


def _seconds(found: Mapping[str, Any], name: str) -> float | None:
    if name == BOUND:
        return found.get("bound")
    seconds: float | None = found.get("variants", {}).get(name, {}).get("seconds")
    return seconds


def _time(found: Mapping[str, Any]) -> str:
    seconds = _seconds(found, OURS)
    if seconds is None:
        return _why(found, OURS)
    spread = found["variants"][OURS]
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    low, middle, high = (_number(factor * value) for value in (spread["p20"], seconds, spread["p80"]))
    return f"{middle} {unit} ({low} to {high})"


def _why(found: Mapping[str, Any], name: str) -> str:
    """In a word, why there is no figure; the results file holds the reason."""
    variants = found.get("variants", {})
    return next((word for word in ("wrong", "failed") if word in variants.get(name, {})), NOT_MEASURED)


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


def ratio(found: Mapping[str, Any], name: str) -> float | None:
    """How many times as long ``name`` took as we did; for the bound, the share of it that we reach.

    A bound that we passed is none, and has no share.
    """
    ours, theirs = _seconds(found, OURS), _seconds(found, name)
    if ours is None or theirs is None or (name == BOUND and theirs > ours):
        return None
    return theirs / ours


def _cell(found: Mapping[str, Any], column: str) -> str:
    if column == PEAK:
        peak = found.get("facts", {}).get(PEAK)
        return NOT_MEASURED if peak is None else f"{peak / 2**20:.0f} MiB"
    value = ratio(found, column)
    if value is None:
        passed = column == BOUND and None not in (_seconds(found, OURS), _seconds(found, BOUND))
        return NO_BOUND if passed else _why(found, column)
    return f"{100 * value:.0f} %" if column == BOUND else f"{_number(value)} x"


def _targets(row: Row, found: Mapping[str, Any]) -> str:
    return "; ".join(_target(target, found) for target in row.targets)


def _target(target: Target, found: Mapping[str, Any]) -> str:
    wanted = f"{100 * target.times:.0f} %" if target.against == BOUND else f"{target.times:g} x"
    where = f" {target.where}" if target.where else ""
    limit = f", under {target.seconds:g} s" if target.seconds else ""
    value = ratio(found, target.against)
    if value is None:
        return f"{wanted} {TITLES[target.against]}{where}{limit}"
    ours = _seconds(found, OURS)
    in_time = target.seconds is None or (ours is not None and ours <= target.seconds)
    reached = "reached" if value >= target.times and in_time else "missed"
    return f"{wanted} {TITLES[target.against]}{where}{limit}: {reached}"


def _where(result: Mapping[str, Any]) -> str:
    if not result:
        return "Not measured yet."
    made = result["stamp"]
    machine, versions = made["machine"], made["versions"]
    device = machine["gpu"] or f"{machine['cpu']} ({machine['isa']}), {machine['threads']} threads"
    quick = ", quick run" if result["quick"] else ""
    backends = sorted({row["facts"][BACKEND] for row in result["rows"] if BACKEND in row["facts"]})
    ran = f"backend {' and '.join(backends)}, " if backends else ""
    return (
        f"Median (20th to 80th percentile); {device}, {ran}torch {versions['torch']}, {made['date']}, "
        f"commit {made['commit']}, load {machine['load']} at the start{quick}."
    )


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
