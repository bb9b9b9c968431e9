"""Budgets of peak memory: the thin network is inside when it is measured, alone and beside other budgets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.memory_networks import NETWORKS
from support.synthetic_device import Device

import slimfast
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.plans.amounts import bytes_of


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    model, example = NETWORKS["residual"]()
    return model.eval(), example


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_the_thin_network_is_inside(name, share):
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    model.eval()
    found = slimfast.plan(model, example, peak_memory=share)
    thin = slimfast.prune_channels(model, found)
    whole, cut = slimfast.peak_memory(model, example).total, slimfast.peak_memory(thin, example).total
    assert cut <= share * whole
    assert found.peak_memory is not None
    assert found.peak_memory.before == whole
    assert found.peak_memory.measured == cut
    # No more than a fifth of the budget is left: nothing else limits these.
    assert cut > 0.8 * share * whole


def test_bytes_are_met_and_shown(residual, tmp_path):
    model, example = residual
    whole = slimfast.peak_memory(model, example).total
    found = slimfast.plan(model, example, peak_memory=f"{0.6 * whole / 1e6}MB")
    assert found.peak_memory.measured <= 0.6 * whole
    text = " ".join(str(found).split())
    assert "peak memory: asked for" in text
    assert "measured" in text.partition("peak memory: predicted")[2]
    assert " in second, batch 2, on cpu" in text
    assert max(map(len, str(found).splitlines())) <= 80
    found.save(tmp_path / "plan.json")
    again = slimfast.Plan.load(tmp_path / "plan.json")
    assert again == found
    assert again.peak_memory == found.peak_memory
    written = json.loads(found.to_json())
    written["schema"] = 5
    del written["peak_memory"]
    with pytest.raises(SlimfastError, match="unknown budget 'peak_memory'"):
        slimfast.Plan.from_json(json.dumps(written))


def test_all_budgets_together_and_multiples(residual):
    model, example = residual
    graph = slimfast.trace_channels(model, example)
    table = slimfast.latency_table(graph, model, example, measure=Device())
    found = slimfast.plan(
        model, example, graph=graph, peak_memory=0.7, params=0.6, macs=0.6, latency=0.7, latency_table=table,
        multiple_of=16,
    )  # fmt: skip
    thin = slimfast.prune_channels(model, found)
    whole = slimfast.peak_memory(model, example).total
    assert slimfast.peak_memory(thin, example).total <= 0.7 * whole
    assert found.cost_after.params <= 0.6 * found.cost_before.params
    assert found.cost_after.macs <= 0.6 * found.cost_before.macs
    assert found.latency.measured <= 0.7 * found.latency.before
    assert all(width % 16 == 0 for width in found.widths().values())


def test_a_larger_budget_never_costs_less(residual):
    model, example = residual
    graph = slimfast.trace_channels(model, example)
    table = slimfast.memory_table(graph, model, example)
    spectra = slimfast.measure_spectra(model, graph)
    peaks = [
        slimfast.plan_widths(graph, spectra, peak_memory=share, memory_table=table).peak_memory.predicted
        for share in np.linspace(0.3, 1.0, 8)
    ]
    assert peaks == sorted(peaks)
    whole = slimfast.plan_widths(graph, spectra, peak_memory=1.0, memory_table=table)
    assert whole.widths() == {group.name: group.n for group in graph}
    assert whole.peak_memory.measured is None


def test_a_calibration_spends_the_budget_by_gain(residual):
    model, example = residual
    graph = slimfast.trace_channels(model, example)
    calibration = slimfast.calibrate(model, graph, [torch.randn(8, 3, 32, 32)])
    found = slimfast.plan(model, example, graph=graph, peak_memory=0.6, calibration=calibration)
    assert found.allocation == "marginal_gain"
    assert found.peak_memory.measured <= 0.6 * found.peak_memory.before
    thin = slimfast.slim(model, example, peak_memory=0.6)
    assert slimfast.peak_memory(thin, example).total <= 0.6 * found.peak_memory.before


def test_a_budget_out_of_reach_says_what_is_fixed(residual):
    model, example = residual
    with pytest.raises(SlimfastError) as caught:
        slimfast.plan(model, example, peak_memory=0.001)
    text = str(caught.value)
    assert "cannot be reached; the nearest that can is a peak memory of" in text
    assert "are there at one unit of every group" in text
    assert "\n" not in text


def test_wrong_arguments(residual):
    model, example = residual
    graph = slimfast.trace_channels(model, example)
    spectra = slimfast.measure_spectra(model, graph)
    with pytest.raises(ArgumentError, match=r"expected a memory_table .* slimfast\.memory_table"):
        slimfast.plan_widths(graph, spectra, peak_memory=0.5)
    with pytest.raises(ArgumentTypeError, match="expected memory_table to be a MemoryTable, got dict"):
        slimfast.plan_widths(graph, spectra, peak_memory=0.5, memory_table={})
    with pytest.raises(ArgumentError, match="rounds: expected a budget of params or macs, got peak_memory"):
        next(iter(slimfast.rounds(model, example, peak_memory=0.5, rounds=2, calibration=[example])))
    for wrong in (0, -1, "0MB", "1.5XB", float("nan"), "120%"):
        with pytest.raises(ArgumentError, match="expected peak_memory"):
            slimfast.plan(model, example, peak_memory=wrong)
    with pytest.raises(ArgumentTypeError, match="expected peak_memory to be a number"):
        slimfast.plan(model, example, peak_memory=True)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1.5e9),
        ("3 kB", 3e3),
        ("64B", 64),
        ("2G", 2e9),
        ("50%", 0.5),
        (0.25, 0.25),
    ],
)
def test_bytes_are_read(text, count):
    assert bytes_of("peak_memory", text) == count


def test_a_trade_off_under_budgets_of_memory(residual):
    model, example = residual
    found = slimfast.trade_off(model, example, budget="peak_memory", budgets=(0.8, "50%"))
    graph = slimfast.trace_channels(model, example)
    table = slimfast.memory_table(graph, model, example)
    for point in found.points:
        memory = point.plan.peak_memory
        assert memory.measured <= point.amount * memory.before
        assert point.left("peak_memory") == memory.measured / memory.before
        # Equal shares are at no more of the same.
        of_plan = table.predicted(graph, point.plan.widths())
        assert table.predicted(graph, point.uniform.widths()) <= of_plan
    assert "peak" in str(found).splitlines()[0]
    assert json.loads(found.to_json())["points"][0]["peak_memory"]["measured"] > 0
