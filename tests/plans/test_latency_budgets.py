"""Budgets of latency: on a device of known stairs the plan is inside, and the widest that is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from support.synthetic_device import Device, stairs_of_8
from torch import nn

import slimfast
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.latency import latency_table
from slimfast.latency.tabulate import thin_network
from slimfast.plans import Plan

EXAMPLE = torch.zeros(1, 3, 8, 8, device="cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, device="cpu"), nn.ReLU(), nn.Conv2d(32, 48, 3, device="cpu"), nn.ReLU(),
        nn.Conv2d(48, 64, 3, device="cpu"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10, device="cpu"),
    )  # fmt: skip
    return model.eval()


@pytest.fixture(scope="module")
def graph(network):
    return slimfast.trace_channels(network, EXAMPLE)


@pytest.fixture(scope="module")
def table(network, graph):
    return latency_table(graph, network, EXAMPLE, measure=Device())


def seconds(network, graph, plan: Plan, device: Device | None = None) -> float:
    return (device or Device())(thin_network(Network.of(network), graph, plan.widths()), EXAMPLE)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_a_share_of_the_time_is_met(network, graph, table, share):
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=share, latency_table=table)
    whole = Device()(network, EXAMPLE)
    assert found.latency is not None
    assert found.latency.before == pytest.approx(whole)
    assert found.latency.measured == seconds(network, graph, found)
    assert found.latency.measured <= share * whole
    assert found.latency.predicted == pytest.approx(found.latency.measured)
    assert found.budget == {"latency": share}


def test_seconds_are_met(network, graph, table):
    whole = Device()(network, EXAMPLE)
    found = slimfast.plan(
        network, EXAMPLE, graph=graph, latency=f"{0.4 * whole * 1e3}ms", latency_table=table
    )
    assert seconds(network, graph, found) <= 0.4 * whole
    assert found.budget == {"latency_seconds": pytest.approx(0.4 * whole)}


def test_widths_stand_at_the_end_of_their_stairs(network, graph, table):
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table)
    widths = found.widths()
    assert all(width == stairs_of_8(width) for width in widths.values()), widths


def test_no_layer_can_be_wider_within_the_budget(network, graph, table):
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table)
    whole = Device()(network, EXAMPLE)
    for group in found.groups:
        if group.width < group.n:
            wider = found.widths() | {group.name: group.width + 1}
            assert table.predicted(graph, wider) > 0.5 * whole


def test_a_wider_layer_that_is_faster_is_taken(network, graph):
    def price(into: int, out: int) -> float:
        # Whatever is no multiple of 16 runs on a slow road.
        return 1e-6 * into * out * (1.0 if out % 16 == 0 or out == 10 else 3.0)

    made = latency_table(graph, network, EXAMPLE, measure=Device(price))
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=made)
    assert all(group.width % 16 == 0 for group in found.groups), found.widths()
    assert found.latency is not None
    assert found.latency.measured is not None
    assert found.latency.measured <= 0.5 * found.latency.before


def test_the_thin_network_is_measured_and_the_plan_solved_again(network, graph):
    class Burdened(Device):
        """What is thin takes longer than its pieces say, as where a cache no longer holds it."""

        def __call__(self, module: nn.Module, example: object) -> float:
            taken = super().__call__(module, example)
            whole = isinstance(module, nn.Sequential) and sum(p.numel() for p in module.parameters()) < 20000
            return taken * 1.3 if whole else taken

    device = Burdened()
    made = latency_table(graph, network, EXAMPLE, measure=device)
    # The table is of a quiet day: whole networks took what their pieces do.
    made = slimfast.LatencyTable(
        made.pieces, tuple((a, a) for a, _ in made.whole), made.graph, made.runtime, made.threads, made.batch,
        made.machine, made.versions, device,
    )  # fmt: skip
    first = slimfast.plan_widths(
        graph, slimfast.measure_spectra(network, graph), latency=0.4, latency_table=made
    )
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.4, latency_table=made)
    whole = device(network, EXAMPLE)
    assert seconds(network, graph, first, device) > 0.4 * whole
    assert seconds(network, graph, found, device) <= 0.4 * whole
    assert found.latency is not None
    assert found.latency.measured == pytest.approx(seconds(network, graph, found, device))


def test_latency_stands_beside_other_budgets(network, graph, table):
    found = slimfast.plan(
        network, EXAMPLE, graph=graph, latency=0.6, macs=0.3, params=0.5, latency_table=table
    )
    assert found.cost_after.macs <= 0.3 * found.cost_before.macs
    assert found.cost_after.params <= 0.5 * found.cost_before.params
    assert seconds(network, graph, found) <= 0.6 * Device()(network, EXAMPLE)


def test_gain_spends_a_budget_of_latency(network, graph, table):
    torch.manual_seed(3)
    data = [(torch.randn(8, 3, 8, 8, device="cpu"),) for _ in range(3)]
    calibration = slimfast.calibrate(network, graph, data)
    found = slimfast.plan(
        network, EXAMPLE, graph=graph, latency=0.5, latency_table=table, calibration=calibration
    )
    assert found.allocation == "marginal_gain"
    assert seconds(network, graph, found) <= 0.5 * Device()(network, EXAMPLE)
    assert all(group.width == stairs_of_8(group.width) for group in found.groups)


def test_multiples_are_kept(network, graph, table):
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table, multiple_of=16)
    assert all(group.width % 16 == 0 for group in found.groups)


def test_a_budget_below_what_no_width_changes_is_refused(network, graph, table):
    with pytest.raises(SlimfastError) as caught:
        slimfast.plan(network, EXAMPLE, graph=graph, latency=0.001, latency_table=table)
    said = str(caught.value)
    assert "cannot be reached; the nearest that can is" in said
    assert "no width changes" in said
    assert "\n" not in said


def test_slim_takes_the_budget(network, graph, table):
    thin = slimfast.slim(network, EXAMPLE, latency=0.5, latency_table=table)
    assert Device()(thin, EXAMPLE) <= 0.5 * Device()(network, EXAMPLE)


def test_plan_widths_wants_a_table(network, graph):
    spectra = slimfast.measure_spectra(network, graph)
    with pytest.raises(ArgumentError, match="expected a latency_table for a budget of latency"):
        slimfast.plan_widths(graph, spectra, latency=0.5)


def test_a_table_beside_another_budget_predicts(network, graph, table):
    found = slimfast.plan_widths(
        graph, slimfast.measure_spectra(network, graph), macs=0.5, latency_table=table
    )
    assert found.latency is not None
    assert found.latency.measured is None
    assert found.latency.predicted == pytest.approx(seconds(network, graph, found))


def test_print_shows_both_times_and_a_file_keeps_them(network, graph, table):
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table)
    said = str(found)
    assert "latency: asked for 0.5" in said
    assert "predicted" in said
    assert "measured" in said
    again = Plan.from_json(found.to_json())
    assert again == found
    assert again.latency == found.latency
    assert "measured" in str(again)


@pytest.mark.parametrize("text", ["12", 1.5, 0, -1, "0ms", "12 minutes", "nan", "150%", float("nan")])
def test_what_is_no_time_is_refused(network, graph, table, text):
    with pytest.raises(ArgumentError, match=r"expected latency in \(0, 1\] .* or seconds as '12ms'"):
        slimfast.plan(network, EXAMPLE, graph=graph, latency=text, latency_table=table)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12ms", 0.012), ("0.5s", 0.5), ("800us", 8e-4), ("1e1 ms", 0.01)]
)
def test_times_are_read(text, seconds):
    from slimfast.plans.amounts import time_of

    assert time_of("latency", text) == (pytest.approx(seconds), True)


def test_a_table_of_another_machine_is_told_of(network, graph, table):
    other = slimfast.LatencyTable(
        table.pieces, table.whole, table.graph, "torch", 1, 1, "a small board", table.versions
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=other)
    said = [str(warning.message) for warning in caught if "a small board" in str(warning.message)]
    assert len(said) == 1
    assert "this is" in said[0]
    assert found.latency is not None
    assert found.latency.measured is None


def test_stairs_send_every_width_to_the_widest_that_is_no_slower(graph, table):
    from slimfast.plans.budget import Rounding
    from slimfast.plans.stairs import with_stairs

    full = np.array([group.n for group in graph.groups], dtype=np.int64)
    stairs = with_stairs(Rounding(full, np.ones_like(full), 1), table.priced(graph), range(len(full)))
    for width in range(1, int(full.min()) + 1):
        sent = stairs.apply(np.full_like(full, width))
        assert sent.tolist() == [min(int(n), stairs_of_8(width)) for n in full]
