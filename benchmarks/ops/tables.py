"""Markdown tables of the ops: a row each of those that the op's file lists, measured or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.markdown import NOT_MEASURED, NOT_YET, Table, rows_of
from benchmarks.run import OPS, SUITES
from benchmarks.timing import BACKEND, BOUND, OURS, PEAK, Row, Target

AVX512 = "avx512"
"""The CPU suite on a second machine: ``benchmarks.run --json-dir benchmarks/results/avx512``."""
NO_BOUND = "no bound"
"""Of a bound that was passed, because it was taken from a rate that others of the machine exceed."""
TITLES = {
    "torch": "plain PyTorch",
    "forward": "one forward",
    "best": "best PyTorch",
    "cusolver": "cuSOLVER",
    "eigh": "one `eigh` a system",
    "float32": "the same in float32",
    "torch_pruning": "torch-pruning",
    "cuda": "by CUDA C++",
    "triton": "by Triton",
    BOUND: "of the bound",
    PEAK: "peak memory",
}


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
    return f"{rows_of(lines)}\n\n{_where(result)}\n"


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
        return NOT_YET
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


TABLES = (
    *(
        Table(f"{suite}-{op}", (f"{suite}-{op}.json",), partial(table, suite, op))
        for suite in SUITES
        for op in OPS
    ),
    *(Table(f"{AVX512}-{op}", (f"{AVX512}/cpu-{op}.json",), partial(table, "cpu", op)) for op in OPS),
)
