"""Plots of the accuracy results: ``python -m benchmarks.accuracy.studies.plots``, from the JSON to
``docs/evidence/images``.

One picture for each result that there is. Needs matplotlib, which the extra ``plot`` brings.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.stamp import ROOT
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path, output_folder

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "evidence" / "images"
OURS, CONTROL, OTHER = "#1b6ca8", "#9a9a9a", "#d98c2b"
Dots = list[tuple[str, list[float], str]]
"""Name, values and colour of each line, the best first."""


def oneshot(result: Mapping[str, Any]) -> tuple[str, Dots]:
    """At half the MACs, with repair from activations: the better selection of each allocation."""
    rows = [row for row in result["rows"] if row["share"] == 0.5 and row["repair"] == "activations"]
    names = dict.fromkeys(row["allocation"] for row in rows)
    best = [
        max((row for row in rows if row["allocation"] == name), key=lambda r: r["test"]) for name in names
    ]
    title = f"{result['settings']['network']}, half the MACs, repaired, no training: top-1, %"
    return title, [(row["allocation"], [100 * row["test"]], _colour(row["allocation"], row)) for row in best]


def recovery(result: Mapping[str, Any]) -> tuple[str, Dots]:
    """Every seed of every contender."""
    settings = result["settings"]
    title = (
        f"{settings['network']} at {settings['macs']:.3g} of its MACs, {settings['epochs']} epochs: top-1, %"
    )
    return title, _by_name(result["rows"])


def minilm(result: Mapping[str, Any]) -> tuple[str, Dots]:
    """Every network, the distilled ones marked."""
    rows = [
        {**row, "name": row["name"] + (", distilled" if row["seed"] is not None else "")}
        for row in result["rows"]
    ]
    share = result["settings"]["encoder"]
    return f"MiniLM, {share:g} of the encoder's parameters: Spearman on STS-B test x 100", _by_name(rows)


PLOTS: dict[str, Callable[[Mapping[str, Any]], tuple[str, Dots]]] = {
    "oneshot": oneshot,
    "recovery": recovery,
    "minilm": minilm,
}


def _by_name(rows: Sequence[Mapping[str, Any]]) -> Dots:
    names = dict.fromkeys(row["name"] for row in rows)
    groups = [[row for row in rows if row["name"] == name] for name in names]
    return [
        (group[0]["name"], [100 * row["test"] for row in group], _colour(group[0]["name"], group[0]))
        for group in groups
    ]


def _colour(name: str, row: Mapping[str, Any]) -> str:
    if row["control"]:
        return CONTROL
    default = ("default", "marginal gain, activations", "marginal gain, lookahead")
    ours = name == "marginal gain" or name.startswith(default)
    return OURS if ours else OTHER


def draw(title: str, dots: Dots, path: Path) -> None:
    """A dot for each value, one line of dots for each name, the best mean on top; SVG of the same bytes for
    the same values.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    dots = sorted(dots, key=lambda line: statistics.fmean(line[1]))
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 0.6 + 0.27 * len(dots)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for height, (_, values, colour) in enumerate(dots):
            axes.plot(values, [height] * len(values), "o", color=colour, markersize=5, alpha=0.8)
            axes.plot(statistics.fmean(values), height, "|", color=colour, markersize=13)
        axes.set_yticks(range(len(dots)), [name for name, _, _ in dots], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(title, fontsize=9, loc="left")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def main(
    results: Annotated[Path, typer.Option(help="Folder with the JSON files.")] = RESULTS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = IMAGES,
) -> None:
    """Draw every accuracy result there is."""
    output_folder(output)
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        kind = result.get("benchmark") if isinstance(result, dict) else None
        if kind in PLOTS and result["rows"]:
            title, dots = PLOTS[kind](result)
            target = output / f"{path.stem}.svg"
            draw(title, dots, target)
            print(f"written: {target}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"plots: {error}") from None
