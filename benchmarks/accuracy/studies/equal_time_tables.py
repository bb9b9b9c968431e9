"""The table of half the time spent in three ways: what is predicted, what is measured and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.studies.cells import mean_of
from benchmarks.accuracy.studies.equal_time import OTHERS, OURS
from benchmarks.accuracy.studies.equal_time_search import EQUAL
from benchmarks.markdown import NOT_MEASURED, NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at

Rows = Sequence[Mapping[str, Any]]
_NAMES = {
    OURS: "within `latency=`",
    "MACs plan": "within `macs=`, as fast",
    "uniform": "uniform widths (control), as fast",
}


def table(result: Result) -> str:
    """Every thin network: predicted error, time, cost, and its score before and after each training."""
    if not result:
        return f"{NOT_YET}\n"
    settings, dense = result["settings"], result["dense"]
    before = {row["name"]: row for row in result["rows"] if row["seed"] is None}
    trainings = sorted({row["epochs"] for row in result["rows"] if row["seed"] is not None})
    heads = [f"after {epochs_text(epochs)}" for epochs in trainings] or ["after training"]
    columns = ["predicted error", "predicted time", "measured", "apart", "MACs", "parameters"]
    lines = [["thin network", *columns, "score before training", *heads]]
    lines.append(["---", *["--:"] * (len(columns) + 1 + len(heads))])
    score = f"{100 * dense['score']:.2f}"
    lines.append(["original", "0", "1", "1", "", "1", "1", score, *[""] * len(heads)])
    missing = [NOT_MEASURED] * (len(columns) + 1)
    for name in (OURS, *OTHERS):
        after = [_after(result["rows"], name, epochs) for epochs in trainings] or [NOT_MEASURED]
        known = _cells(before[name], dense) if name in before else missing
        lines.append([_NAMES[name], *known, *after])
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] != 1)}"
    inputs = f"{settings['tokens']} tokens" if settings["tokens"] else "32 x 32"
    return (
        f"{rows_of(lines)}\n\n{settings['network']} at {settings['latency']:g} of its time, batches of "
        f"{settings['batch']} of {inputs}, {threads}. {_verdict(result['rows'], before, trainings)} "
        f"Error: the share of the curves' whole error that is left. Times are shares of the whole network's; "
        f"apart is how much longer a network takes than the first one, in turn with it. "
        f"{settings['samples']} samples calibrate; units by lookahead and repair from activations for all; "
        f"{made_at(result)}, load {result['stamp']['machine']['load']:g} at the start.\n"
    )


def epochs_text(epochs: int) -> str:
    """Write a number of epochs."""
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def _cells(row: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    apart = "" if row["name"] == OURS else f"{row['apart']:+.1%}"
    costs = [f"{row[cost] / dense[cost]:.3f}" for cost in ("macs", "params")]
    times = [f"{row['predicted']:.3f}", f"{row['measured']:.3f}"]
    return [f"{row['error']:.4f}", *times, apart, *costs, f"{100 * row['score']:.2f}"]


def _scores(rows: Rows, name: str, epochs: int) -> dict[int, float]:
    return {row["seed"]: row["score"] for row in rows if (row["name"], row["epochs"]) == (name, epochs)}


def _after(rows: Rows, name: str, epochs: int) -> str:
    """The mean over the seeds, and how many there are."""
    found = [100 * score for score in _scores(rows, name, epochs).values()]
    if not found:
        return NOT_MEASURED
    return f"{mean_of(found)} ({len(found)} seed{'s' * (len(found) != 1)})"


def _verdict(rows: Rows, before: Mapping[str, Mapping[str, Any]], trainings: Sequence[int]) -> str:
    """Say where the first plan is ahead of both others, where it is not, and what is no comparison."""
    if len(before) <= len(OTHERS):
        return f"Ahead of both others: {NOT_MEASURED}."
    ours, others = before[OURS], [before[name] for name in OTHERS]
    found = {
        "predicted error": all(ours["error"] < other["error"] for other in others),
        "score before training": all(ours["score"] > other["score"] for other in others),
    }
    for epochs in trainings:
        several = [_scores(rows, name, epochs) for name in (OURS, *OTHERS)]
        # Only seeds that all three were trained from are compared.
        seeds = several[0].keys() & several[1].keys() & several[2].keys()
        if seeds:
            means = [sum(scores[seed] for seed in seeds) / len(seeds) for scores in several]
            found[f"score after {epochs_text(epochs)}"] = means[0] > max(means[1:])
    text = "; ".join(f"{what}: {'yes' if ahead else 'no'}" for what, ahead in found.items())
    unequal = [_NAMES[other["name"]] for other in others if abs(other["apart"]) > EQUAL]
    far = f" Further apart than {EQUAL:.0%}, so no comparison: {'; '.join(unequal)}." if unequal else ""
    return f"The `latency=` plan ahead of both others - {text}.{far}"


TABLES = (Table("accuracy-equal-time-*", ("equal-time-*.json",), table),)
