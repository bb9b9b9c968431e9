"""What people look at, made from the data: rich tables and the picture of a plan. Nothing here prints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slimfast.arrays import FloatArray
from slimfast.calibration.curves import ErrorCurve
from slimfast.diagnostics.comparison import Comparison
from slimfast.diagnostics.doctor import Diagnosis
from slimfast.distillation import History
from slimfast.errors import SlimfastError, printable
from slimfast.plans.plan_data import Plan
from slimfast.spectra import Spectrum
from slimfast.storage.atomic import atomic_path, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib writes with no other program.
_FORMATS = ("jpeg", "jpg", "pdf", "png", "ps", "svg", "tif", "tiff", "webp")
TAUS = (0.8, 0.9, 0.95, 0.99)


def spectra_table(spectra: Mapping[str, Spectrum], *, taus: Sequence[float] = TAUS) -> Table:
    """One row per layer: its size, effective rank, and the width that preserves each share of ``taus``."""
    table = Table(title="width that preserves a share of the variance", show_footer=True)
    table.add_column("layer", f"{len(spectra)} layers", overflow="fold")
    table.add_column("units", f"{sum(s.n for s in spectra.values()):,}", justify="right")
    table.add_column("positions", justify="right")
    table.add_column("effective rank", justify="right")
    for tau in taus:
        total = sum(s.width(explained_variance=tau) for s in spectra.values())
        table.add_column(f"{tau:g}", f"{total:,}", justify="right")
    for name, spectrum in spectra.items():
        widths = (str(spectrum.width(explained_variance=tau)) for tau in taus)
        rank = f"{spectrum.effective_rank():.1f}"
        # Text: brackets in the names of a stranger's file are no markup.
        table.add_row(Text(printable(name)), str(spectrum.n), str(spectrum.d), rank, *widths)
    return table


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """Median times of the grouped ops and of plain PyTorch, and how far the results are from float64."""
    table = Table(title="grouped ops and plain PyTorch, medians of interleaved runs")
    for column in ("op", "backend", "slimfast ms", "PyTorch ms", "ratio", "error", "PyTorch error"):
        table.add_column(column, justify="left" if column in ("op", "backend") else "right")
    for row in rows:
        table.add_row(
            row.op,
            row.backend,
            f"{1e3 * row.seconds:.2f}",
            f"{1e3 * row.torch_seconds:.2f}",
            f"{row.torch_seconds / row.seconds:.2f}x",
            f"{row.error:.1e}",
            f"{row.torch_error:.1e}",
        )
    return table


def doctor_report(diagnosis: Diagnosis) -> RenderableType:
    """What is built, found and chosen, and why not the rest."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in diagnosis.facts.items():
        facts.add_row(name, value)
    for extra, packages in diagnosis.extras.items():
        found = (f"{name} {version}" if version else f"{name} missing" for name, version in packages.items())
        facts.add_row(f"extra {extra}", ", ".join(found))
    ops = Table(title="which backend runs an op, and why not the others")
    for column in ("op", "on", "runs", "why not the others"):
        ops.add_column(column, overflow="fold")
    for op in diagnosis.ops:
        reasons = (f"{name}: {'; '.join(why)}" for name, why in op.against.items() if why)
        ops.add_row(op.op, op.device, op.chosen or "none", "\n".join(reasons))
    return Group(facts, Text(), ops)


def history_table(history: History) -> Table:
    """One row per epoch of a distillation; the epoch with the best score is marked."""
    table = Table(title="distillation")
    for column in ("epoch", "loss", "score", "learning rate", "seconds"):
        table.add_column(column, justify="right")
    for epoch in history.epochs:
        score = "-" if epoch.score is None else f"{epoch.score:.4f}{' *' if epoch == history.best else '  '}"
        table.add_row(str(epoch.epoch), f"{epoch.loss:.4f}", score, f"{epoch.lr:.2e}", f"{epoch.seconds:.1f}")
    return table


def plan_figure(plan: Plan, spectra: Mapping[str, Spectrum] | Mapping[str, ErrorCurve]) -> Figure:
    """Draw a plan: what each group keeps over the share of its units, and all widths.

    No display is needed, and no global state of matplotlib is touched.

    Args:
        plan: The plan.
        spectra: What it was made from: spectra, or of a plan by marginal gain the error curves. Groups that
            are not there have no curve.

    Returns:
        The figure.

    Raises:
        SlimfastError: Without matplotlib, which the extra ``plot`` brings.

    Example:
        spectra = slimfast.measure_spectra(model, plan.graph)
        slimfast.save_figure(slimfast.plan_figure(plan, spectra), "plan.png")
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SlimfastError("a picture needs matplotlib: install the extra 'slimfast[plot]'") from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(2, 1)
    _draw_curves(curves, plan, spectra)
    _draw_widths(bars, plan)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, whole or not at all.

    Args:
        figure: From :func:`plan_figure`, or any other of matplotlib.
        path: The file; its suffix is the format.

    Raises:
        SlimfastError: For another format, and where the file cannot be written.

    Example:
        slimfast.save_figure(slimfast.plan_figure(plan, spectra), "plan.svg")
    """
    check_figure(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def check_figure(path: str | os.PathLike[str] | None) -> None:
    """Refuse a file that :func:`save_figure` could not write, before there is a figure."""
    if path is None:
        return
    suffix = Path(path).suffix.removeprefix(".")
    if suffix.lower() not in _FORMATS:
        raise SlimfastError(
            f"cannot write {os.fspath(path)}: expected a suffix of {', '.join(_FORMATS)}, got {suffix!r}"
        )
    check_writable(path)


def _draw_curves(axes: Any, plan: Plan, spectra: Mapping[str, Spectrum] | Mapping[str, ErrorCurve]) -> None:
    """Draw what k units keep over k / n, a line a group, the first ones dark; a dot at the cut."""
    drawn = [group for group in plan.groups if group.name in spectra]
    for i, group in enumerate(drawn):
        ratio = _kept(spectra[group.name])
        color = _depth_color(i / max(len(drawn) - 1, 1))
        axes.plot(np.arange(len(ratio)) / group.n, ratio, color=color, linewidth=1)
        axes.plot(group.width / group.n, group.explained_variance, "o", color=color, markersize=4)
    if plan.explained_variance is not None:
        axes.axhline(plan.explained_variance, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"explained variance of {len(drawn)} groups, tau = {plan.explained_variance:.4g}")
    axes.set_xlabel("share of the units (k / n), first groups dark, last ones light")
    by_gain = plan.allocation == "marginal_gain"
    if by_gain:
        axes.set_title(f"error of the output that the units of {len(drawn)} groups take away")
    axes.set_ylabel("share of the error taken away" if by_gain else "explained variance F(k)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)


def _kept(curve: Spectrum | ErrorCurve) -> FloatArray:
    """Compute what 0, 1, ... units keep, as a share."""
    if isinstance(curve, Spectrum):
        return np.concatenate(([0.0], curve.explained_variance_ratio()))
    return np.array([curve.ratio(k) for k in range(curve.n + 1)])


def _draw_widths(axes: Any, plan: Plan) -> None:
    """A bar per group: units before, width after."""
    places = np.arange(len(plan.groups))
    axes.bar(places, [group.n for group in plan.groups], color="0.85", label="units")
    axes.bar(places, [group.width for group in plan.groups], color="tab:blue", label="width")
    macs = _share(plan.cost_after.macs, plan.cost_before.macs)
    params = _share(plan.cost_after.params, plan.cost_before.params)
    axes.set_title(f"widths: {macs} of the MACs, {params} of the parameters")
    # More labels than these overlap.
    step = max(1, -(-len(plan.groups) // 40))
    axes.set_xticks(places[::step], [group.name for group in plan.groups][::step], rotation=90, fontsize=6)
    axes.legend()


def _depth_color(depth: float) -> tuple[float, float, float]:
    """Dark blue for depth 0 to light orange for depth 1."""
    first, last = (0.05, 0.15, 0.45), (1.0, 0.7, 0.3)
    red, green, blue = (a + (b - a) * depth for a, b in zip(first, last, strict=True))
    return red, green, blue


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
