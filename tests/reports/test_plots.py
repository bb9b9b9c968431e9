"""Tables hold the numbers of their data, and the picture shows every group."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from slimfast.calibration.curves import ErrorCurve
from slimfast.diagnostics.comparison import Comparison
from slimfast.distillation import EpochRecord, History
from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import InputSpec
from slimfast.plans.costs import Cost
from slimfast.plans.plan_data import GroupPlan, Plan
from slimfast.reports.plots import comparison_table, history_table, plan_figure, save_figure, spectra_table
from slimfast.spectra.spectrum import Spectrum


def shown(renderable) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins with `first`."""
    rows = ([cell.strip() for cell in re.split("[│┃║|]", line)[1:-1]] for line in text.splitlines())
    return next(row for row in rows if row and row[0] == first)


def spectrum(name: str, eigenvalues: list[float], n: int, d: int) -> Spectrum:
    values = np.array(eigenvalues)
    return Spectrum(name, n, d, values, float(values.sum()), 0.0, "float64")


@pytest.fixture
def plan() -> Plan:
    groups = tuple(GroupPlan(f"layer{i}", "channel", 8, 2 + i, 0.9, True) for i in range(3))
    before, after = Cost(1000, 4000, 4000), Cost(250, 1500, 1000)
    return Plan(groups, 0.9, {"macs": 0.4}, 1, before, after, {}, InputSpec((), {}))


@pytest.fixture
def spectra() -> dict[str, Spectrum]:
    return {f"layer{i}": spectrum(f"layer{i}", [4.0, 2.0, 1.0, 1.0], 8, 4) for i in range(3)}


def test_a_plan_by_gain_is_drawn_on_its_own_curves(plan):
    pytest.importorskip("matplotlib")
    curves = {f"layer{i}": ErrorCurve(f"layer{i}", 8, np.linspace(4.0, 0.0, 9)) for i in range(3)}
    groups = tuple(replace(g, explained_variance=g.width / 8, chosen="gain") for g in plan.groups)
    gained = replace(plan, groups=groups, explained_variance=None, allocation="marginal_gain")
    axes = plan_figure(gained, curves).axes[0]
    lines, dots = axes.lines[::2], axes.lines[1::2]
    assert len(lines) == len(dots) == 3
    for line, dot in zip(lines, dots, strict=True):
        assert dot.get_ydata()[0] == pytest.approx(np.interp(dot.get_xdata()[0], *line.get_data()))
    assert "error" in axes.get_ylabel()


def test_spectra():
    found = {"a": spectrum("a", [6.0, 3.0, 1.0], 3, 9), "b": spectrum("b", [1.0, 1.0], 4, 2)}
    text = shown(spectra_table(found, taus=(0.6, 0.9)))
    # F = 0.6, 0.9, 1 for a and 0.5, 1 for b; two equal eigenvalues have the effective rank 2.
    assert cells(text, "a")[1:3] == ["3", "9"]
    assert cells(text, "a")[4:] == ["1", "2"]
    assert cells(text, "b") == ["b", "4", "2", "2.0", "2", "2"]
    assert cells(text, "2 layers")[4:] == ["3", "4"]


def test_history_marks_the_best_epoch():
    first, second = EpochRecord(1, 2.5, 0.1, 0.75, 3.0), EpochRecord(2, 1.25, 0.05, 0.5, 4.0)
    text = shown(history_table(History((first, second), first)))
    assert cells(text, "1") == ["1", "2.5000", "0.7500 *", "1.00e-01", "3.0"]
    assert cells(text, "2") == ["2", "1.2500", "0.5000", "5.00e-02", "4.0"]
    without = shown(history_table(History((EpochRecord(1, 2.5, 0.1, None, 3.0),), None)))
    assert cells(without, "1")[2] == "-"


def test_comparison():
    text = shown(comparison_table([Comparison("gather", "cpu", 0.002, 0.006, 0.0, 1e-7)]))
    assert cells(text, "gather") == ["gather", "cpu", "2.00", "6.00", "3.00x", "0.0e+00", "1.0e-07"]


def test_the_picture_has_a_curve_and_a_bar_per_group(plan, spectra):
    pytest.importorskip("matplotlib")
    curves, bars = plan_figure(plan, spectra).axes
    lines = [line for line in curves.lines if len(line.get_xdata()) == 5]
    assert len(lines) == 3
    np.testing.assert_allclose(lines[0].get_ydata(), [0, 0.5, 0.75, 0.875, 1])
    np.testing.assert_allclose(lines[0].get_xdata(), np.arange(5) / 8)
    dots = [line.get_xydata().tolist() for line in curves.lines if line.get_marker() == "o"]
    assert dots == [[[2 / 8, 0.9]], [[3 / 8, 0.9]], [[4 / 8, 0.9]]]
    assert [patch.get_height() for patch in bars.patches] == [8, 8, 8, 2, 3, 4]
    assert "37.5 % of the MACs, 25.0 % of the parameters" in bars.get_title()
    assert [label.get_text() for label in bars.get_xticklabels()] == ["layer0", "layer1", "layer2"]


def test_a_plan_without_tau_and_groups_without_spectra(plan):
    pytest.importorskip("matplotlib")
    by_hand = Plan(plan.groups, None, {}, 1, plan.cost_before, plan.cost_after, {}, plan.inputs)
    curves, _ = plan_figure(by_hand, {}).axes
    assert len(curves.lines) == 0


def test_pictures_are_written_in_the_format_of_their_suffix(plan, spectra, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plan_figure(plan, spectra)
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "a.pdf")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(SlimfastError, match=r"cannot write .*a\.nonsense: .*nonsense") as caught:
        save_figure(figure, tmp_path / "a.nonsense")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_a_fault_inside_is_not_blamed_on_the_path(plan, spectra, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figure = plan_figure(plan, spectra)

    def fail(*args, **options):
        raise ValueError("a fault")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        save_figure(figure, tmp_path / "a.png")


def test_a_missing_matplotlib_is_one_line(plan, spectra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(SlimfastError, match=r"extra 'slimfast\[plot\]'"):
        plan_figure(plan, spectra)
