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
_ALIKE, PAPER = "marginal gain, shares of activations", "explained variance (paper)"
OURS = "marginal gain, activations"
LOST = (
    (
        "every consumer counted alike",
        (_ALIKE, "activations", "activations"),
        "by deviations of the output",
        (OURS, "activations", "activations"),
    ),
    (
        "by variances of the output",
        ("marginal gain, squares", "activations", "activations"),
        "by deviations of the output",
        (OURS, "activations", "activations"),
    ),
    *(
        (f"{name}, one tau", (name, "l1", "activations"), "the paper's", (PAPER, "l1", "activations"))
        for name in ("folded batch norm", "unit scaling", "noise corrected")
    ),
    (
        "activation spectra, one tau",
        ("activation spectra", "activations", "activations"),
        "the paper's",
        (PAPER, "activations", "activations"),
    ),
    (
        "gain on weights' spectra",
        ("marginal gain, weights", "l1", None),
        "on activations",
        (_ALIKE, "l1", None),
    ),
    (
        "units by activations, after repair",
        (_ALIKE, "activations", "activations"),
        "by L1",
        (_ALIKE, "l1", "activations"),
    ),
    ("weights' repair, uniform", ("uniform", "l1", "weights"), "no repair", ("uniform", "l1", None)),
    (
        "weights' repair, marginal gain",
        (_ALIKE, "activations", "weights"),
        "from activations",
        (_ALIKE, "activations", "activations"),
    ),
)
"""What was tried, and what it is compared with: (allocation, selection, repair) of each."""


def table(result: Mapping[str, Any]) -> str:
    """A table of an accuracy result, and a line on the recipe and the machine."""
    made = {"oneshot": oneshot, "recovery": recovery, "minilm": minilm}.get(result.get("benchmark", ""))
    if made is not None:
        return made(result)
    lines = [["", "test accuracy", "parameters", "MACs"], ["---", "--:", "--:", "--:"]]
    for key, name in NETWORKS:
        rows = [row for row in result.get("rows", ()) if f"{row['kind']}, {row['stage']}" == key]
        lines.append([name, *(cells_of(rows) if rows else [NOT_MEASURED] * 3)])
    text = rows_of(lines)
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
    text = rows_of(lines)
    torch, commit = made["versions"]["torch"], made["commit"]
    return (
        f"{text}\n\nSquared correlation of the paper's kept shares with those of noise of the same shapes: "
        f"{noise or NOT_MEASURED}.\n\n{settings['network']}, no training; "
        f"{settings['calibration_images']} training images calibrate, {settings['test_images']:,} test "
        f"images, each network run once; torch {torch}, {made['date']}, commit {commit}.\n"
    )


def lost(result: Mapping[str, Any]) -> str:
    """What was tried against the default and the paper's rule, and what it cost, from a one-shot result.

    Each row differs from the one it is compared with in a single thing, at the same share of the MACs.
    """
    found = {
        tuple(row[key] for key in ("allocation", "select", "repair")): 100 * row["test"]
        for row in result.get("rows", ())
        if row["share"] == 0.5
    }
    lines = [["tried", "", "instead", "", "difference"], ["---", "--:", "---", "--:", "--:"]]
    for what, key, instead, other in LOST:
        if key in found and other in found:
            one, two = found[key], found[other]
            lines.append([what, f"{one:.2f} %", instead, f"{two:.2f} %", f"{one - two:+.2f}"])
    if not result:
        return f"{rows_of(lines)}\n\nNot measured yet.\n"
    settings = result["settings"]
    return (
        f"{rows_of(lines)}\n\n{settings['network']} at half its MACs, no training, rows of the table of all; "
        f"{settings['test_images']:,} test images.\n"
    )


def recovery(result: Mapping[str, Any]) -> str:
    """Per contender, the best first: mean and deviation over the seeds that were trained."""
    settings, made = result["settings"], result["stamp"]
    names = dict.fromkeys(row["name"] for row in result["rows"])
    groups = [[row for row in result["rows"] if row["name"] == name] for name in names]
    groups.sort(key=lambda rows: -statistics.fmean(row["test"] for row in rows))
    columns = ["test accuracy", "seeds", "held out, before", "after", "training loss", "parameters", "MACs"]
    lines = [["thin network", *columns, "time"], ["---", *["--:"] * (len(columns) + 1)]]
    for rows in groups:
        held = [f"{100 * statistics.fmean(row[k] for row in rows):.2f} %" for k in ("before", "validation")]
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
        f"{trained} of {asked} trainings run; "
        f"torch {made['versions']['torch']}, {made['date']}, commit {made['commit']}.\n"
    )


def minilm(result: Mapping[str, Any]) -> str:
    """One-shot networks and distilled ones, the best first in each part."""
    settings, made, dense = result["settings"], result["stamp"], result["dense"]
    lines = [
        ["thin network", "repair", "trained", "test", "dev", "seeds", "of the encoder"],
        ["---", "---", "---", "--:", "--:", "--:", "--:"],
        ["original", "", "", f"{100 * dense['test']:.2f}", f"{100 * dense['dev']:.2f}", "", "1"],
    ]
    keys = dict.fromkeys((row["name"], row["seed"] is not None) for row in result["rows"])
    groups = [
        [row for row in result["rows"] if (row["name"], row["seed"] is not None) == key] for key in keys
    ]
    groups.sort(key=lambda rows: (rows[0]["seed"] is not None, -statistics.fmean(r["test"] for r in rows)))
    for rows in groups:
        first = rows[0]
        name = first["name"].removesuffix(f", {first['repair']}")
        trained = first["seed"] is not None
        scores = [_mean([100 * row[split] for row in rows]) for split in ("test", "dev")]
        lines.append(
            [
                f"{name}{' (control)' if first['control'] else ''}",
                first["repair"] or "none",
                "distilled" if trained else "",
                *scores,
                str(len(rows)) if trained else "",
                f"{first['encoder'] / dense['encoder']:.3f}",
            ]
        )
    epochs = f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)}"
    sentences = f"{settings['sentences']:,}" if settings["sentences"] else "all"
    return (
        f"{rows_of(lines)}\n\nSpearman's rank correlation x 100; heads and MLP of MiniLM cut to "
        f"{settings['encoder']:g} of the encoder's parameters, {settings['calibration']} sentences of the "
        f"training split calibrate. Distilled: {epochs} on {sentences} of its sentences, without scores, "
        f"AdamW, cosine from {settings['lr']:g}, batches of {settings['batch']}, the same for all; "
        f"torch {made['versions']['torch']}, {made['date']}, commit "
        f"{made['commit']}.\n"
    )


def rows_of(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: Sequence[float]) -> str:
    """Mean, and the deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    mean, *spread = _mean([100 * row["test"] for row in rows]).partition(" ±")
    return [f"{mean} %{''.join(spread)}", f"{rows[0]['params']:,}", f"{rows[0]['macs']:,}"]


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
