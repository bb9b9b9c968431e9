"""The report: one HTML file with the figures, the groups and the reasons, which opens without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path

from torch import nn

from slimfast.calibration import ErrorCurve
from slimfast.diagnostics.doctor import version
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph import ChannelGraph
from slimfast.plans import Plan
from slimfast.plans.plan_table import quantity
from slimfast.plans.plan_text import left_alone, why_whole
from slimfast.pruning import verification_report
from slimfast.pruning.repair import repair_report
from slimfast.reports.charts import Chart, charts_of
from slimfast.spectra import Spectrum
from slimfast.storage.atomic import atomic_path, check_writable
from slimfast.studies import Sensitivities, TradeOff

# Nothing is fetched: neither by the page nor by the library in it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_VERSIONS = ("slimfast", "torch", "numpy", "plotly")
# Of the tensors that stay for one reason so many are named.
_NAMED = 12


def report(
    plan: Plan | str | os.PathLike[str] | None,
    path: str | os.PathLike[str],
    *,
    curves: Mapping[str, Spectrum] | Mapping[str, ErrorCurve] | None = None,
    trade_off: TradeOff | None = None,
    sensitivities: Sensitivities | None = None,
    graph: ChannelGraph | None = None,
    thin: nn.Module | None = None,
    title: str = "slimfast",
) -> None:
    """Write a report that one looks at: one HTML file, which opens without a network.

    It has the widths before and after, the curves they come from, the cost by layer, the trade-off, the
    sensitivities, what stays whole and why, and what a verification found; what is not given is left out. The
    plan is in the file as well, as its JSON document in the element ``plan``.

    Args:
        plan: The plan, or the path of the file it is in; None for a trade-off or sensitivities alone.
        path: The .html file, written whole or not at all.
        curves: What the plan was made from: spectra, or error curves.
        trade_off: From :func:`slimfast.trade_off`.
        sensitivities: From :func:`slimfast.sensitivity`.
        graph: The graph of the model, for a plan that was read from a file: it says what stays whole.
        thin: The network that was cut, for what its verification and its repair found.
        title: What stands above.

    Raises:
        SlimfastError: Without plotly, which the extra ``report`` brings; for a file that cannot be written,
            or that is not named .html; and where there is nothing to report.

    Example:
        curves = slimfast.measure_spectra(model, plan.graph)
        slimfast.report(plan, "report.html", curves=curves, thin=thin)
    """
    check_report(path)
    if thin is not None and not isinstance(thin, nn.Module):
        raise ArgumentTypeError(f"report: expected thin to be an nn.Module, got {type(thin).__name__}")
    found = None if plan is None else Plan.of(plan)
    charts = charts_of(found, curves, trade_off, sensitivities)
    if not charts:
        raise SlimfastError("report: expected a plan, a trade-off or sensitivities, got none of them")
    below = {"trade-off": str(trade_off), "agreement": str(sensitivities)}
    sections = [_section(chart, below.get(chart.name)) for chart in charts]
    if found is not None:
        sections += [_groups(found), _whole(found, graph or found.graph)]
    if thin is not None:
        sections.append(_checked(thin))
    sections.append(_versions())
    with atomic_path(path) as temporary:
        temporary.write_text(_page(title, found, charts, sections), encoding="utf-8")


def check_report(path: str | os.PathLike[str] | None) -> None:
    """Refuse a report that cannot be written, before the work: for its name, its folder, or want of
    plotly.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise SlimfastError(
            f"cannot write {os.fspath(path)}: expected a name ending in .html, "
            f"got {Path(path).suffix or 'none'}"
        )
    _library()
    check_writable(path)


def _library() -> str:
    """Read the plotting library that goes into the page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SlimfastError("a report needs plotly: install the extra 'slimfast[report]'") from error
    text: str = get_plotlyjs()
    return text


def _page(title: str, plan: Plan | None, charts: list[Chart], sections: list[str]) -> str:
    own = files("slimfast.reports")
    style, code = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = [_data("charts", json.dumps([asdict(chart) for chart in charts], allow_nan=False))]
    if plan is not None:
        data.append(_data("plan", plan.to_json()))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            f'<header><h1>{escape(title)}</h1><button id="theme" type="button">dark</button></header>',
            "" if plan is None else _cards(plan),
            *sections,
            "</main>",
            *data,
            f"<script>{_library()}</script>",
            f"<script>\n{code}</script>\n</body>\n</html>\n",
        ]
    )


def _data(name: str, text: str) -> str:
    """Put JSON into the page; no text in it can end the element."""
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def _cards(plan: Plan) -> str:
    before, after = plan.cost_before, plan.cost_after
    cut = sum(group.width < group.n for group in plan.groups)
    told = [
        (f"{_share(before.macs, after.macs)}", f"of {quantity(before.macs)} MACs are left"),
        (f"{_share(before.params, after.params)}", f"of {quantity(before.params)} parameters"),
        (f"{after.bytes / 2**20:.1f} MiB", f"of weights, {before.bytes / 2**20:.1f} before"),
        (f"{cut} of {len(plan.groups)}", "groups are narrower"),
    ]
    asked = ", ".join(f"{name} = {value:g}" for name, value in plan.budget.items())
    if asked:
        told.append((escape(asked), "was asked for"))
    cards = "".join(f'<div class="card"><b>{value}</b><span>{what}</span></div>' for value, what in told)
    return f'<div class="cards">{cards}</div>'


def _share(before: int, after: int) -> str:
    return f"{after / before:.1%}" if before else "-"


def _section(chart: Chart, text: str | None) -> str:
    """Lay out a figure, with the table that it is drawn from below where there is one."""
    table = (
        "" if text is None else f"<details><summary>as a table</summary><pre>{escape(text)}</pre></details>"
    )
    return (
        f"<section><h2>{escape(chart.title)}</h2><p>{escape(chart.says)}</p>"
        f'<div class="chart" id="chart-{chart.name}"></div>{table}</section>'
    )


def _groups(plan: Plan) -> str:
    head = ("group", "kind", "units", "width", "explains", "MACs", "left", "parameters", "left", "by")
    text = {0, 1, 9}
    rows = [
        (
            group.name,
            group.kind,
            str(group.n),
            str(group.width),
            f"{group.explained_variance:.4f}",
            quantity(group.before.macs),
            _share(group.before.macs, group.after.macs),
            quantity(group.before.params),
            _share(group.before.params, group.after.params),
            group.chosen,
        )
        for group in plan.groups
    ]
    classes = [' class="text"' if i in text else "" for i in range(len(head))]

    def line(tag: str, cells: tuple[str, ...]) -> str:
        inner = "".join(f"<{tag}{c}>{escape(v)}</{tag}>" for v, c in zip(cells, classes, strict=True))
        return f"<tr>{inner}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return (
        f"<section><h2>Groups</h2><p>All {len(rows)} groups.</p>"
        '<input id="filter" placeholder="filter by name">'
        f'<div class="scroll"><table id="groups"><thead>{line("th", head)}</thead>'
        f"<tbody>\n{body}\n</tbody></table></div></section>"
    )


def _whole(plan: Plan, graph: ChannelGraph | None) -> str:
    """Say what stays whole and why: groups, and the axes that belong to none."""
    reasons: dict[str, list[str]] = {}
    for name, why in why_whole(plan, graph).items():
        reasons.setdefault(f"whole groups: {why}", []).append(name)
    if graph is not None:
        for why, names in left_alone(graph).items():
            reasons.setdefault(f"axes of no group: {why}", []).extend(names)
    if not reasons:
        return ""
    lines = []
    for why, names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines += [f"{why} ({len(names)})", f"  {', '.join(names[:_NAMED])}{more}"]
    told = "" if graph is not None else "<p>What belongs to no group is told where the graph is at hand.</p>"
    inner = escape("\n".join(lines))
    return f'<section id="whole"><h2>What stays whole, and why</h2>{told}<pre>{inner}</pre></section>'


def _checked(thin: nn.Module) -> str:
    """Say what the verification and the repair of a thin network found."""
    parts = []
    try:
        parts.append(str(verification_report(thin)))
    except SlimfastError as error:
        parts.append(f"not verified: {error}")
    try:
        repaired = repair_report(thin)
    except SlimfastError as error:
        parts.append(f"not repaired: {error}")
    else:
        parts.append(f"repaired from {repaired.kind}: {len(repaired.fits)} layers")
        parts += [f"not repaired: {name}: {reason}" for name, reason in repaired.left.items()]
    inner = escape("\n".join(parts))
    return f'<section id="checked"><h2>Verification</h2><pre>{inner}</pre></section>'


def _versions() -> str:
    found = ", ".join(f"{name} {version(name) or 'from its source folder'}" for name in _VERSIONS)
    return f'<section><h2>Made with</h2><p id="versions">{escape(found)}</p></section>'
