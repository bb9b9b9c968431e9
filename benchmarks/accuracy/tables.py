"""Markdown tables of the accuracy benchmarks' results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"
NETWORKS = (
    ("dense, trained", "original"),
    ("plan, one shot", "thin, pruned"),
    ("plan, distilled", "thin, distilled"),
    ("uniform, one shot", "uniform widths, pruned"),
    ("uniform, distilled", "uniform widths, distilled"),
)


def table(result: Mapping[str, Any]) -> str:
    """A table of the networks of a CIFAR-10 result, and a line on the recipe and the machine."""
    if result.get("benchmark") == "oneshot":
        return oneshot(result)
    lines = [["", "test accuracy", "parameters", "MACs"], ["---", "--:", "--:", "--:"]]
    for key, name in NETWORKS:
        rows = [row for row in result.get("rows", ()) if f"{row['kind']}, {row['stage']}" == key]
        lines.append([name, *(_cells(rows) if rows else [NOT_MEASURED] * 3)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{_where(result)}\n"


def oneshot(result: Mapping[str, Any]) -> str:
    """Per share of the MACs: widths by units and repair, the best first; test accuracy."""
    rows = sorted(result["rows"], key=lambda row: (-row["share"], -row["test"]))
    lines = [
        ["MACs", "widths", "units", "repair", "test accuracy", "parameters", "MACs reached"],
        ["--:", "---", "---", "---", "--:", "--:", "--:"],
    ]
    whole = result["dense"]
    lines.append(["1", "original", "", "", f"{100 * whole['test']:.2f} %", f"{whole['params']:,}", "1"])
    for row in rows:
        name = f"{row['allocation']}{' (control)' if row['control'] else ''}"
        lines.append(
            [
                f"{row['share']:g}",
                name,
                row["select"],
                row["repair"] or "none",
                f"{100 * row['test']:.2f} %",
                f"{row['params']:,}",
                f"{row['macs'] / whole['macs']:.4f}",
            ]
        )
    settings, made = result["settings"], result["stamp"]
    noise = ", ".join(
        f"{found['squared_correlation']:.2f} at {found['share']:g} (tau {found['tau']:.3f}, of noise "
        f"{found['tau_of_noise']:.3f})"
        for found in result.get("profile", ())
    )
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    torch, commit = made["versions"]["torch"], made["commit"]
    return (
        f"{text}\n\nSquared correlation of the paper's kept shares with those of noise of the same shapes: "
        f"{noise or NOT_MEASURED}.\n\n{settings['network']}, no training; "
        f"{settings['calibration_images']} training images calibrate, {settings['test_images']:,} test "
        f"images, each network run once; torch {torch}, {made['date']}, commit {commit}.\n"
    )


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    accuracies = [100 * row["test"] for row in rows]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    mean = f"{statistics.fmean(accuracies):.2f} %{spread}"
    return [mean, f"{rows[0]['params']:,}", f"{rows[0]['macs']:,}"]


def _where(result: Mapping[str, Any]) -> str:
    if not result:
        return "Not measured yet."
    settings, made = result["settings"], result["stamp"]
    seeds = len(settings["seeds"])
    return (
        f"{settings['network']} at {settings['macs']:g} of its MACs, filters by {settings['select']}; "
        f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)} of distillation on "
        f"{settings['train_images']:,} images, {seeds} seed{'s' * (seeds != 1)}, "
        f"{settings['test_images']:,} test images read once; {result['wall_seconds']:.0f} s, "
        f"torch {made['versions']['torch']}, {made['date']}, commit {made['commit']}."
    )
