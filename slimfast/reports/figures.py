"""The figures of a report drawn by matplotlib, for files of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slimfast.calibration import ErrorCurve
from slimfast.errors import SlimfastError
from slimfast.plans import Plan
from slimfast.reports.charts import Chart, Series, charts_of
from slimfast.spectra import Spectrum
from slimfast.studies import Sensitivities, TradeOff

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"before": "#c3c9d4", "after": "#2f6fdb", "yardstick": "#8a93a3", "accent": "#d9480f"}
_FIRST, _LAST = (0.05, 0.15, 0.45), (0.91, 0.59, 0.24)
# More names than these overlap.
_NAMES = 48


def report_figures(
    plan: Plan | None = None,
    *,
    curves: Mapping[str, Spectrum] | Mapping[str, ErrorCurve] | None = None,
    trade_off: TradeOff | None = None,
    sensitivities: Sensitivities | None = None,
) -> dict[str, Figure]:
    """Draw the figures of a report one by one.

    Args:
        plan: A plan, for "widths" and "costs".
        curves: What it was made from, for "curves": spectra, or error curves.
        trade_off: From :func:`slimfast.trade_off`, for "trade-off".
        sensitivities: From :func:`slimfast.sensitivity`, for "sensitivities" and "agreement".

    Returns:
        The figures by these names.

    Raises:
        SlimfastError: Without matplotlib, which the extra ``plot`` brings, and with nothing to draw.

    Example:
        for name, figure in slimfast.report_figures(plan, curves=spectra).items():
            slimfast.save_figure(figure, f"{name}.svg")
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SlimfastError("a picture needs matplotlib: install the extra 'slimfast[plot]'") from error
    charts = charts_of(plan, curves, trade_off, sensitivities)
    if not charts:
        raise SlimfastError("report_figures: expected a plan, a trade-off or sensitivities, got none of them")
    found = {}
    for chart in charts:
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), chart)
        found[chart.name] = figure
    return found


def _draw(axes: Any, chart: Chart) -> None:
    named = isinstance(chart.series[0].x[0], str)
    names = [str(x) for x in chart.series[0].x] if named else []
    for series in chart.series:
        x = range(len(series.x)) if named else series.x
        _draw_series(axes, series, x)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if named:
        step = max(1, -(-len(names) // _NAMES))
        axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
    if any(not _in_a_crowd(series) for series in chart.series):
        axes.legend()


def _draw_series(axes: Any, series: Series, x: Any) -> None:
    color = _depth_color(series.depth) if series.role == "depth" else _COLORS[series.role]
    label = None if _in_a_crowd(series) else series.name
    if series.kind == "bars":
        axes.bar(x, series.y, color=color, label=label)
    elif series.kind == "points":
        axes.plot(x, series.y, "o", color=color, markersize=5, label=label)
    else:
        style = "--" if series.role == "yardstick" else "-"
        width = 1.0 if _in_a_crowd(series) else 1.8
        axes.plot(x, series.y, style, color=color, linewidth=width, label=label)


def _in_a_crowd(series: Series) -> bool:
    """Whether a series is one of as many as there are groups, which no legend lists."""
    return series.role == "depth" and series.kind == "line"


def _depth_color(depth: float) -> tuple[float, float, float]:
    """Dark for the first, light for the last."""
    red, green, blue = (a + (b - a) * depth for a, b in zip(_FIRST, _LAST, strict=True))
    return red, green, blue
