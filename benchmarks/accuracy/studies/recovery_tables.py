"""The tables of the recovery study: all contenders of a network, and the most telling of all networks."""

from __future__ import annotations

import statistics

from benchmarks.accuracy.studies.cells import cells_of
from benchmarks.markdown import NOT_MEASURED, NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at

TELLING = (
    "default",
    "torch-pruning",
    "group magnitude, repaired",
    "noise null, L1",
    "uniform, lookahead, repaired, streams whole",
    "uniform, L1, streams whole",
    "uniform, L1",
    "random widths, L1",
    "uniform, from scratch",
)
"""The rows of the table of all networks, in this order."""


def table(result: Result) -> str:
    """Per contender, the best first: mean and deviation over the seeds that were trained."""
    if not result:
        return f"{NOT_YET}\n"
    settings = result["settings"]
    names = dict.fromkeys(row["name"] for row in result["rows"])
    groups = [[row for row in result["rows"] if row["name"] == name] for name in names]
    groups.sort(key=lambda rows: -statistics.fmean(row["test"] for row in rows))
    columns = ["test accuracy", "seeds", "held out, before", "after", "training loss", "parameters", "MACs"]
    lines = [["thin network", *columns, "time"], ["---", *["--:"] * (len(columns) + 1)]]
    for rows in groups:
        held = [_held_out([row[key] for row in rows]) for key in ("before", "validation")]
        name = f"{rows[0]['name']}{' (control)' if rows[0]['control'] else ''}"
        took = statistics.fmean(row["seconds"] for row in rows)
        mean, params, macs = cells_of(rows)
        # Rows of before it was kept have none.
        losses = [row["loss"] for row in rows if "loss" in row]
        loss = f"{statistics.fmean(losses):.3f}" if len(losses) == len(rows) else ""
        lines.append([name, mean, str(len(rows)), *held, loss, params, macs, f"{took:.0f} s"])
    trained, asked = len(result["rows"]), result.get("planned", len(result["rows"]))
    epochs = f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)}"
    return (
        f"{rows_of(lines)}\n\n{settings['network']} at {settings['macs']:.3g} of its MACs; "
        f"{epochs} on {settings['train_images']:,} images, the same for all: batches of {settings['batch']}, "
        f"SGD with Nesterov momentum, cosine from {settings['lr']:g}, weight decay "
        f"{settings['weight_decay']:g}, {settings['soft']:g} x targets at T = {settings['temperature']:g} "
        f"+ {settings['hard']:g} x labels, {settings['test_images']:,} test images read once; "
        f"{trained} of {asked} trainings run; {made_at(result)}.\n"
    )


def _held_out(scores: list[float | None]) -> str:
    """The mean, in percent; nothing where no image was held out."""
    known = [score for score in scores if score is not None]
    return f"{100 * statistics.fmean(known):.2f} %" if known else ""


def brief(*networks: Result) -> str:
    """Of several networks, the most telling contenders: mean, deviation and number of seeds of each."""
    results = [result for result in networks if result]
    heads = [f"{result['settings']['network']}, from {result['settings']['lr']:g}" for result in results]
    lines = [["thin network", *heads], ["---", *["--:"] * len(results)]]
    controls = {row["name"] for result in results for row in result["rows"] if row["control"]}
    for name in TELLING:
        cells = []
        for result in results:
            rows = [row for row in result["rows"] if row["name"] == name]
            cells.append(f"{cells_of(rows)[0]} ({len(rows)})" if rows else NOT_MEASURED)
        lines.append([f"{name}{' (control)' if name in controls else ''}", *cells])
    if not results:
        return f"{rows_of(lines)}\n\n{NOT_YET}\n"
    settings = results[0]["settings"]
    return (
        f"{rows_of(lines)}\n\nAt {settings['macs']:.3g} of the MACs, after {settings['epochs']} epochs on "
        f"{settings['train_images']:,} images, {settings['test_images']:,} test images; mean ± deviation "
        f"(seeds).\n"
    )


TABLES = (
    Table("accuracy-recovery-*", ("recovery-*.json",), table),
    Table(
        "accuracy-brief-recovery",
        ("recovery-resnet20.json", "recovery-resnet56-lr0.02.json", "recovery-vgg16_bn.json"),
        brief,
    ),
)
