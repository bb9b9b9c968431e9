"""The one table of the README: a row a situation, from the results of the study that it is of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.markdown import NOT_MEASURED, NOT_YET, Result, Table, rows_of
from benchmarks.zoo.tables import road_seconds

_WHOLE_CUT = ": from network to thin network"
_HEAD = ("", "original", "slimfast", "best control", "uniform widths, L1")


def summary(
    before: Result,
    after: Result,
    untrained: Result,
    trained_long: Result,
    sentences: Result,
    decoder: Result,
    distilled: Result,
    zoo: Result,
    pipeline: Result,
) -> str:
    """Write the rows of what was measured, how long the tool takes, and how long beside its peer."""
    lines = [list(_HEAD), ["---", *["--:"] * (len(_HEAD) - 1)]]
    if before:
        lines.append(_before(before))
    if after:
        lines.append(_after(after, untrained))
    if trained_long:
        lines.append(_after(trained_long, untrained))
    if sentences:
        lines.append(_sentences(sentences))
    if decoder:
        lines.append(_decoder(decoder))
    if distilled and distilled["rows"]:
        lines.append(_distilled(distilled))
    spent = road_seconds(zoo)
    speed = (
        f"The tool itself, from trace to prune: {statistics.median(spent):.1f} s in the median of "
        f"{len(spent)} families of timm, {max(spent):.1f} s at most."
        if spent
        else NOT_YET
    )
    return f"{rows_of(lines)}\n\n{speed}{_beside_peer(pipeline)}\n"


def _before(result: Result) -> list[str]:
    settings = result["settings"]
    rows = [row for row in result["rows"] if row["share"] == 0.5]

    def ours(row: Mapping[str, Any]) -> bool:
        return row["allocation"] == "marginal gain, activations" and row["select"] == "activations"

    def uniform(row: Mapping[str, Any]) -> bool:
        return row["allocation"] == "uniform" and row["select"] == "l1" and not row["repair"]

    return [
        f"{settings['network']}, half of the MACs, **no training**, {settings['calibration_images']} images "
        "without labels",
        f"{100 * result['dense']['test']:.1f} %",
        _percent(rows, lambda row: ours(row) and row["repair"] == "activations"),
        _percent(rows, lambda row: row["control"] and row["repair"] == "activations"),
        _percent(rows, uniform),
    ]


def _after(result: Result, untrained: Result) -> list[str]:
    settings = result["settings"]
    means = {
        name: 100 * statistics.fmean(row["test"] for row in result["rows"] if row["name"] == name)
        for name in dict.fromkeys(row["name"] for row in result["rows"])
    }
    controls = [means[row["name"]] for row in result["rows"] if row["control"]]
    seeds = len({row["seed"] for row in result["rows"] if row["name"] == "default"})
    shown = {name: f"{mean:.1f} %" for name, mean in means.items()}
    return [
        f"{settings['network']}, {settings['macs']:.3g} of the MACs, **{settings['epochs']} epochs** on "
        f"{settings['train_images']:,} images, {seeds} seed{'s' * (seeds != 1)}",
        f"{100 * untrained['dense']['test']:.1f} %" if untrained else NOT_MEASURED,
        shown.get("default", NOT_MEASURED),
        f"{max(controls):.1f} %" if controls else NOT_MEASURED,
        shown.get("uniform, L1", NOT_MEASURED),
    ]


def _sentences(result: Result) -> list[str]:
    settings = result["settings"]

    def mean(name: str) -> str:
        found = [
            100 * row["test"] for row in result["rows"] if row["name"] == name and row["seed"] is not None
        ]
        return f"{statistics.fmean(found):.1f}" if found else NOT_MEASURED

    return [
        f"MiniLM, {settings['encoder']:g} of the encoder, **{settings['epochs']} epoch** on "
        f"{settings['sentences']:,} sentences without scores (Spearman x 100, STS-B)",
        f"{100 * result['dense']['test']:.1f}",
        mean("marginal gain, activations"),
        mean("uniform, L1, activations"),
        NOT_MEASURED,
    ]


def _decoder(result: Result) -> list[str]:
    settings, share = result["settings"], max(result["settings"]["shares"])
    rows = [row for row in result["rows"] if row["share"] == share]

    def mean(name: str) -> float | None:
        found = [row["perplexity"] for row in rows if row["name"] == name]
        return statistics.fmean(found) if found else None

    def shown(*names: str) -> str:
        found = [value for value in map(mean, names) if value is not None]
        return f"{min(found):.1f}" if found else NOT_MEASURED

    known = {row["name"] for row in rows}
    controls = {row["name"] for row in rows if row["control"]}
    best = min(controls, key=lambda name: mean(name) or float("inf"), default="")
    draws, of_best = (len({row["draw"] for row in rows if row["name"] in of}) for of in (known, {best}))
    fewer = f", of the control {of_best}" if controls and of_best < draws else ""
    return [
        f"SmolLM2-135M, {share:g} of its layers' parameters, **no training**, {settings['calibration']} x "
        f"{settings['calibration_length']} tokens (perplexity, lower is better; on "
        f"{result['dense']['tokens']:,} predictions: rough; {draws} draws{fewer})",
        f"{result['dense']['perplexity']:.1f}",
        shown("marginal gain, MLP, activations"),
        shown(best),
        shown("uniform, L1, activations"),
    ]


def _distilled(result: Result) -> list[str]:
    settings, dense = result["settings"], result["dense"]

    def after(*, control: bool) -> str:
        found: dict[str, list[float]] = {}
        for row in result["rows"]:
            if row["control"] == control:
                found.setdefault(row["name"], []).append(row["after"])
        return f"{min(map(statistics.fmean, found.values())):.1f}" if found else NOT_MEASURED

    seeds = len({row["seed"] for row in result["rows"]})
    return [
        f"SmolLM2-135M, {settings['share']:g} of its layers' parameters, **{settings['steps']} steps** of "
        f"{settings['batch']} x {settings['length']} tokens of the same kind (perplexity; on "
        f"{dense['tokens']:,} predictions: rough; {seeds} seed{'s' * (seeds > 1)})",
        f"{dense['perplexity']:.1f}",
        after(control=False),
        after(control=True),
        NOT_MEASURED,
    ]


def _beside_peer(result: Result) -> str:
    """Say how a whole cut, without the verification, compares with torch-pruning's of the same network."""
    ratios = (
        [
            variants["slimfast"]["seconds"] / variants["torch_pruning"]["seconds"]
            for variants in (row["variants"] for row in result["rows"] if row["name"].endswith(_WHOLE_CUT))
            if "seconds" in variants["torch_pruning"]
        ]
        if result
        else []
    )
    if not ratios:
        return ""
    faster = sum(ratio < 1 for ratio in ratios)
    return (
        f" From network to thin network it takes {statistics.median(ratios):.2f} of torch-pruning's time in "
        f"the median of {len(ratios)} networks, and is faster on {faster}."
    )


def _percent(rows: list[Mapping[str, Any]], chosen: Callable[[Mapping[str, Any]], bool]) -> str:
    """Take the best of the chosen rows."""
    found = [row["test"] for row in rows if chosen(row)]
    return f"{100 * max(found):.1f} %" if found else NOT_MEASURED


TABLES = (
    Table(
        "summary",
        (
            "oneshot-resnet56-telling.json",
            "recovery-resnet20.json",
            "oneshot-resnet20-telling.json",
            "recovery-resnet20-long.json",
            "minilm-short.json",
            "decoder-draws.json",
            "distilled-decoder.json",
            "zoo.json",
            "cpu-pipeline.json",
        ),
        summary,
    ),
)
