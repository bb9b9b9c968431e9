"""The report: one file that fetches nothing and holds the plan; clicked through in a browser where one is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from support import browser
from torch import nn

import slimfast
from slimfast import ErrorCurve, Plan, SlimfastError
from slimfast.reports.charts import charts_of, curves_chart

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TITLE = "one <b>& two"


class Parsed(HTMLParser):
    """The elements of a page, with the text of those that have an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag not in ("meta", "input", "link", "img"):
            self._open.append(found.get("id", ""))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self._open):
            self.texts[name] = self.texts.get(name, "") + data


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    pytest.importorskip("plotly")
    model = network()
    graph = slimfast.trace_channels(model, X)
    spectra = slimfast.measure_spectra(model, graph)
    plan = slimfast.plan(model, graph=graph, spectra=spectra, macs=0.5)
    path = tmp_path_factory.mktemp("report") / "report.html"
    slimfast.report(
        plan,
        path,
        curves=spectra,
        trade_off=slimfast.trade_off(model, X, graph=graph, spectra=spectra, budgets=(0.8, 0.5, 0.3)),
        sensitivities=slimfast.sensitivity(model, X, graph=graph, spectra=spectra, shares=(0.5,)),
        thin=slimfast.prune_channels(model, plan),
        title=TITLE,
    )
    return path, plan


def test_nothing_of_the_page_is_fetched(written: tuple[Path, Plan]) -> None:
    page = Parsed(written[0].read_text())
    assert [
        (tag, name) for tag, name, _ in page.attributes if name in ("src", "href", "srcset", "data")
    ] == []
    assert {tag for tag, _, _ in page.attributes}.isdisjoint({"link", "iframe", "img", "object", "base"})
    policy = next(value for tag, _, value in page.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    style = re.search(r"<style>(.*?)</style>", written[0].read_text(), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_data_in_the_page_is_that_of_the_plan(written: tuple[Path, Plan]) -> None:
    path, plan = written
    page = Parsed(path.read_text())
    assert Plan.from_json(page.texts["plan"]) == plan
    charts = {chart["name"]: chart for chart in json.loads(page.texts["charts"])}
    assert list(charts) == ["widths", "curves", "costs", "trade-off", "sensitivities", "agreement"]
    before, after = charts["widths"]["series"]
    assert dict(zip(after["x"], after["y"], strict=True)) == plan.widths()
    assert before["y"] == [group.n for group in plan.groups]
    assert charts["costs"]["series"][1]["y"] == [group.after.macs for group in plan.groups]
    assert Parsed(path.read_text()).texts["charts"].count("predicted by explained variance") >= 1
    chosen = next(series for series in charts["curves"]["series"] if series["name"] == "chosen")
    assert chosen["x"] == [group.width / group.n for group in plan.groups]
    assert chosen["y"] == pytest.approx([group.explained_variance for group in plan.groups])
    for group in plan.groups:
        assert re.search(rf"{group.name}\s*{group.kind}\s*{group.n}\s*{group.width}", page.texts["groups"])


def test_reasons_verification_and_versions_are_told(written: tuple[Path, Plan]) -> None:
    page = Parsed(written[0].read_text())
    assert "it is what the network returns" in page.texts["whole"]
    assert "compared with the masked original" in page.texts["checked"]
    assert "not repaired" in page.texts["checked"]
    assert f"torch {torch.__version__.partition('+')[0]}" in page.texts["versions"]
    assert "<b>" not in page.texts.get("plan", "")
    assert TITLE not in written[0].read_text()
    assert "one &lt;b&gt;&amp; two" in written[0].read_text()


def test_a_name_of_a_stranger_cannot_end_an_element(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    plan = slimfast.plan(network(), X, macs=0.5)
    hostile = "</script><script>alert(1)</script>"
    named = replace(plan, groups=(replace(plan.groups[0], name=hostile), *plan.groups[1:]), graph=None)
    slimfast.report(named, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert hostile not in text
    assert Plan.from_json(Parsed(text).texts["plan"]).groups[0].name == hostile


def test_curves_of_a_plan_are_drawn_as_what_they_are() -> None:
    plan = slimfast.plan(network(), X, macs=0.5)
    curves = {g.name: ErrorCurve(g.name, g.n, np.linspace(8.0, 0.0, g.n + 1)) for g in plan.groups}
    by_error = curves_chart(plan, curves)
    assert by_error is not None
    assert (by_error.title, "tau" in by_error.series[-1].name) == ("Error curves", False)
    for series, group in zip(by_error.series, plan.groups, strict=False):
        assert series.x[-1] == 1.0
        assert group.width / group.n in series.x
        assert series.y == pytest.approx(series.x)
    by_variance = curves_chart(plan, slimfast.measure_spectra(network(), plan.graph))
    assert by_variance is not None
    assert by_variance.series[-1].name.startswith("tau = ")
    assert curves_chart(plan, {}) is None


def test_hundreds_of_groups_are_drawn_in_a_page_of_few_megabytes(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    plan = slimfast.plan(network(), X, macs=0.5)
    many = tuple(replace(plan.groups[0], name=f"layers.{i}", n=2048, width=1000 + i) for i in range(400))
    wide = replace(plan, groups=many, graph=None)
    curves = {g.name: ErrorCurve(g.name, g.n, np.linspace(8.0, 0.0, g.n + 1)) for g in many}
    slimfast.report(wide, tmp_path / "r.html", curves=curves)
    text = (tmp_path / "r.html").read_text()
    assert len(text) < 8e6
    page = Parsed(text)
    drawn = {chart["name"]: chart["series"] for chart in json.loads(page.texts["charts"])}
    assert drawn["widths"][1]["y"] == [group.width for group in many]
    # A curve of thousands of units is drawn by some dozens of them, the width of the plan among them.
    assert all(len(series["x"]) < 60 for series in drawn["curves"][:400])
    assert all(
        group.width / group.n in series["x"] for group, series in zip(many, drawn["curves"], strict=False)
    )
    assert page.texts["groups"].count("layers.") == 400


def test_pictures_of_the_same_figures() -> None:
    pytest.importorskip("matplotlib")
    model = network()
    plan = slimfast.plan(model, X, macs=0.5)
    found = slimfast.trade_off(model, X, budgets=(0.8, 0.5))
    alone = slimfast.sensitivity(model, X, shares=(0.5,))
    figures = slimfast.report_figures(plan, trade_off=found, sensitivities=alone)
    assert list(figures) == [chart.name for chart in charts_of(plan, None, found, alone)]
    bars = [patch.get_height() for patch in figures["widths"].axes[0].patches]
    assert bars == [*(group.n for group in plan.groups), *(group.width for group in plan.groups)]
    line = figures["trade-off"].axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([point.predicted for point in found.points])
    with pytest.raises(SlimfastError, match="expected a plan, a trade-off or sensitivities"):
        slimfast.report_figures()


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    plan = slimfast.plan(network(), X, macs=0.5)
    for name, said in (("r.pdf", r"expected a name ending in .html, got \.pdf"), ("r", "got none")):
        with pytest.raises(SlimfastError, match=said):
            slimfast.report(plan, tmp_path / name)
    with pytest.raises(SlimfastError, match="cannot write"):
        slimfast.report(plan, tmp_path / "no" / "r.html")
    with pytest.raises(SlimfastError, match="expected a plan, a trade-off or sensitivities"):
        slimfast.report(None, tmp_path / "r.html")
    with pytest.raises(TypeError, match="expected a Plan or the path of one, got int"):
        slimfast.report(3, tmp_path / "r.html")
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(
        SlimfastError, match="a report needs plotly: install the extra 'slimfast\\[report\\]'"
    ):
        slimfast.report(plan, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


COLOUR = "getComputedStyle(document.body).backgroundColor"


def test_a_browser_clicks_through_the_page(written: tuple[Path, Plan]) -> None:
    command = browser.installed()
    if command is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path, plan = written
    with browser.page(command) as page:
        page.open(path)
        page.wait("document.querySelectorAll('.chart .main-svg').length >= 6")
        assert page.ask(COLOUR) == "rgb(255, 255, 255)"
        bars = page.ask("document.querySelectorAll('#chart-widths .bars .point').length")
        assert bars == 2 * len(plan.groups)
        # The pointer on a bar tells the name of its group.
        page.point("#chart-widths .bars:last-child .point:last-child path")
        page.wait("document.querySelector('#chart-widths .hoverlayer').textContent.length > 0")
        told = page.ask("document.querySelector('#chart-widths .hoverlayer').textContent")
        last = plan.groups[-1]
        assert last.name in told
        assert f"{last.n} -> {last.width}" in told
        # A click on the legend takes a series away.
        page.point("#chart-widths .legendtoggle", click=True)
        page.wait(f"document.querySelectorAll('#chart-widths .bars .point').length === {len(plan.groups)}")
        page.point("#theme", click=True)
        page.wait(f"{COLOUR} === 'rgb(18, 22, 29)'")
        ink = page.ask("document.querySelector('#chart-costs .xtitle').style.fill")
        assert ink == "rgb(230, 233, 239)"
        page.point("#filter", click=True)
        page.write(plan.groups[1].name)
        page.wait("[...document.querySelectorAll('#groups tbody tr')].filter((r) => !r.hidden).length === 1")
        page.open(path, dark=True)
        page.wait(f"{COLOUR} === 'rgb(18, 22, 29)'")
        assert page.errors == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests)
        assert page.requests
