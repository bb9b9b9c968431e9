"""Budgets of time on a machine whose clock is a little off each time."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from support.synthetic_device import Device
from torch import nn

import slimfast
from slimfast.latency import Latency, LatencyTable, latency_table
from slimfast.latency.runtimes import machine_name
from slimfast.plans import measured

EXAMPLE = torch.zeros(1, 3, 8, 8, device="cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    widths = (3, 211, 307, 251, 193)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [nn.Conv2d(into, out, 3, padding=1, device="cpu"), nn.ReLU()]
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10, device="cpu"))
    return nn.Sequential(*layers, *tail).eval()


@pytest.fixture(scope="module")
def graph(network):
    return slimfast.trace_channels(network, EXAMPLE)


@pytest.fixture(scope="module")
def device():
    return Device(lambda into, out: 1e-6 * into * out)


@pytest.fixture(scope="module")
def table(network, graph, device):
    made = latency_table(graph, network, EXAMPLE, measure=device)
    here = machine_name(torch.device("cpu"))
    return LatencyTable(made.pieces, made.whole, made.graph, "torch", 1, 1, here, made.versions)


def clock(device, seed: int, off: float, slower: float = 1.0):
    """Make a clock that is up to a share ``off`` beside the truth; what is thin is ``slower``, too."""
    random_number = random.Random(seed)

    def measure_latency(networks, example, **how):
        found = []
        for i, network in enumerate(networks):
            seconds = device(network, example) * (1.0 + random_number.uniform(-off, off)) * slower**i
            # the median says nothing on a busy machine
            median = seconds * random_number.uniform(1.1, 1.5)
            found.append(Latency(median, median, median, seconds, 9, "torch", 1, 1, "here"))
        return found

    return measure_latency


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("share", "slower"), [(0.7, 1.0), (0.5, 1.2), (0.3, 0.8)])
def test_plans_are_inside_whatever_the_clock_said(
    network, graph, device, table, monkeypatch, seed, share, slower
):
    # Both clocks together are off by half a percent at most, as much as lies beside what is close enough.
    monkeypatch.setattr(measured, "measure_latency", clock(device, seed, 0.0025, slower))
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=share, latency_table=table)
    thin = slimfast.prune_channels(network, found, verify=False)
    took = slower * device(thin, EXAMPLE) / device(network, EXAMPLE)
    assert 0.97 * share <= took <= share
    assert found.latency is not None
    assert found.latency.measured is not None
    assert found.latency.measured / found.latency.before == pytest.approx(took, rel=0.006)


@pytest.mark.parametrize("slower", [1.1, 1.3])
def test_a_clock_that_is_always_a_little_fast_brings_no_plan_over_its_budget(
    network, graph, device, table, monkeypatch, slower
):
    monkeypatch.setattr(measured, "measure_latency", clock(device, 0, 0.0, 0.996 * slower))
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table)
    thin = slimfast.prune_channels(network, found, verify=False)
    assert slower * device(thin, EXAMPLE) <= 0.5 * device(network, EXAMPLE)


def test_what_is_predicted_is_what_the_plan_takes_and_not_what_it_aims_at(
    network, graph, device, table, monkeypatch
):
    monkeypatch.setattr(measured, "measure_latency", clock(device, 0, 0.0, 1.2))
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=0.5, latency_table=table)
    assert found.latency is not None
    assert found.latency.predicted == pytest.approx(found.latency.measured)


def test_a_budget_that_is_just_in_reach_is_met_though_what_is_aimed_at_is_not(
    network, graph, device, table, monkeypatch
):
    # What is thin takes a tenth longer than it should.
    least, slower = {group.name: 100 for group in graph.groups}, 1.1
    share = slower * 1.002 * table.predicted(graph, least) / device(network, EXAMPLE)
    monkeypatch.setattr(measured, "measure_latency", clock(device, 0, 0.0, slower))
    found = slimfast.plan(network, EXAMPLE, graph=graph, latency=share, latency_table=table, min_width=100)
    assert found.widths() == least
