"""Tables of several networks at once: the most telling rows of the one-shot and recovery benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.accuracy.studies.tables import NOT_MEASURED, OURS, PAPER, cells_of, rows_of

ONESHOT = (
    (OURS, "activations", "activations"),
    (OURS, "lookahead", "activations"),
    (OURS, "activations", None),
    (PAPER, "l1", "activations"),
    (PAPER, "l1", None),
    ("noise null", "l1", "activations"),
    ("uniform", "activations", "activations"),
    ("uniform", "l1", "activations"),
    ("uniform", "l1", None),
    ("group magnitude, global", "its own", "activations"),
    ("group magnitude, global", "its own", None),
    ("random widths", "l1", "activations"),
)
RECOVERY = (
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
"""The rows of the tables of all networks, in this order."""


def oneshot(results: Sequence[Mapping[str, Any]]) -> str:
    """The most telling rows, a column for each network and share; test accuracy."""
    columns = [
        (result, share) for result in results for share in sorted({r["share"] for r in result["rows"]})[::-1]
    ]
    heads = [f"{result['settings']['network']}, {share:g}" for result, share in columns]
    whole = [f"{100 * result['dense']['test']:.2f} %" for result, _ in columns]
    lines = [
        ["widths", "units", "repair", *heads],
        ["---", "---", "---", *["--:"] * len(columns)],
        ["original", "", "", *whole],
    ]
    controls = {r["allocation"] for result in results for r in result["rows"] if r["control"]}
    for key in ONESHOT:
        cells = []
        for result, share in columns:
            found = [
                row["test"]
                for row in result["rows"]
                if (row["allocation"], row["select"], row["repair"], row["share"]) == (*key, share)
            ]
            cells.append(f"{100 * found[0]:.2f} %" if found else NOT_MEASURED)
        name, units, repair = key
        mark = " (control)" if name in controls else ""
        lines.append([f"{name}{mark}", units, repair or "none", *cells])
    images = ", ".join(f"{r['settings']['network']} {r['settings']['test_images']:,}" for r in results)
    where = f"No training; share of the MACs kept; test images: {images}." if results else "Not measured yet."
    return f"{rows_of(lines)}\n\n{where}\n"


def recovery(results: Sequence[Mapping[str, Any]]) -> str:
    """The most telling contenders, a column for each network: mean and deviation, and the number of seeds."""
    heads = [f"{result['settings']['network']}, from {result['settings']['lr']:g}" for result in results]
    lines = [["thin network", *heads], ["---", *["--:"] * len(results)]]
    controls = {row["name"] for result in results for row in result["rows"] if row["control"]}
    for name in RECOVERY:
        cells = []
        for result in results:
            rows = [row for row in result["rows"] if row["name"] == name]
            cells.append(f"{cells_of(rows)[0]} ({len(rows)})" if rows else NOT_MEASURED)
        lines.append([f"{name}{' (control)' if name in controls else ''}", *cells])
    if not results:
        return f"{rows_of(lines)}\n\nNot measured yet.\n"
    settings = results[0]["settings"]
    return (
        f"{rows_of(lines)}\n\nAt {settings['macs']:.3g} of the MACs, after {settings['epochs']} epochs on "
        f"{settings['train_images']:,} images, {settings['test_images']:,} test images; mean ± deviation "
        f"(seeds).\n"
    )


TABLES: dict[str, tuple[Callable[[Sequence[Mapping[str, Any]]], str], tuple[str, ...]]] = {
    "oneshot": (
        oneshot,
        ("oneshot-resnet56-telling", "oneshot-resnet20-telling", "oneshot-vgg16_bn-telling"),
    ),
    "recovery": (recovery, ("recovery-resnet20", "recovery-resnet56-lr0.02", "recovery-vgg16_bn")),
}
"""What makes each table, and the results it is of."""
