"""Plans: budgets solved exactly, against every network of the ladder tried one by one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.channel_graphs import chain, chain_weights
from support.plan_cases import SIZES, spectra_of, spectrum

from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.plans import Plan, plan_widths
from slimfast.plans.costs import count
from slimfast.spectra import Spectrum, measure_spectra


def ladder_reference(
    graph: ChannelGraph,
    spectra: dict[str, Spectrum],
    limits: dict[str, float],
    *,
    multiple_of: int = 1,
    min_width: int = 1,
) -> dict[str, int] | None:
    """The solution by trying every tau there is, one unit at a time, and then every unit that still fits;
    None where nothing fits.
    """

    def rounded(units: dict[str, int]) -> dict[str, int]:
        found = {}
        for group in graph:
            width = max(units[group.name], min_width)
            found[group.name] = min(group.n, math.ceil(width / multiple_of) * multiple_of)
        return found

    def fits(units: dict[str, int]) -> bool:
        cost = count(graph, rounded(units))
        return all(getattr(cost, name) <= limit for name, limit in limits.items())

    units = {group.name: 1 for group in graph}
    if not fits(units):
        return None
    while True:
        waiting = []
        for order, group in enumerate(graph):
            k, s = units[group.name], spectra[group.name]
            needed = s.width(explained_variance=1.0)
            if k < group.n:
                key = s.ratio(k) if k < needed else 1.0 + (k - needed + 1) / (group.n - needed)
                waiting.append((key, order, group.name))
        more = {**units, min(waiting)[2]: units[min(waiting)[2]] + 1} if waiting else units
        if not waiting or not fits(more):
            break
        units = more
    rest = [
        (
            k > spectra[group.name].width(explained_variance=1.0),
            Fraction(k - units[group.name], group.n),
            order,
        )
        for order, group in enumerate(graph)
        for k in range(units[group.name] + 1, group.n + 1)
    ]
    ended = set()
    for _, _, order in sorted(rest):
        name = graph[order].name
        more = {**units, name: units[name] + 1}
        if name not in ended and fits(more):
            units = more
        else:
            ended.add(name)
    return rounded(units)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=40, max_size=40),
    share=st.floats(0.01, 1.0),
    other=st.floats(0.01, 1.0),
    which=st.sampled_from(["params", "macs", "both"]),
    multiple_of=st.integers(1, 3),
    min_width=st.integers(1, 4),
)
def test_a_budget_is_met_by_the_last_network_of_the_ladder_that_fits_and_every_unit_after_it_that_does(
    sizes: list[int],
    values: list[float],
    share: float,
    other: float,
    which: str,
    multiple_of: int,
    min_width: int,
) -> None:
    """Values come from a few, so that ties within and across groups, zeros and missing ranks are common."""
    graph = chain(sizes, inputs=5)
    source = itertools.cycle(values)
    spectra = {}
    for group, d in zip(graph, [5, *sizes], strict=False):
        eigenvalues = [next(source) for _ in range(min(group.n, d))]
        spectra[group.name] = dataclasses.replace(spectrum(group.name, eigenvalues, d=d), n=group.n)
    free = [g for g, d in zip(graph, [5, *sizes], strict=False) if d > 1]
    if any(multiple_of > group.n for group in free) or len(free) < len(graph):
        return
    whole = count(graph, {})
    asked = {"params": share, "macs": other} if which == "both" else {which: share}
    limits = {name: value * getattr(whole, name) for name, value in asked.items()}
    expected = ladder_reference(graph, spectra, limits, multiple_of=multiple_of, min_width=min_width)
    options = {"multiple_of": multiple_of, "min_width": min_width}
    if expected is None:
        with pytest.raises(SlimfastError, match="cannot be reached; the nearest that can is"):
            plan_widths(graph, spectra, **asked, **options)
        return
    found = plan_widths(graph, spectra, **asked, **options)
    assert found.widths() == expected
    assert all(getattr(found.cost_after, name) <= limit for name, limit in limits.items())
    assert found.explained_variance is not None
    assert 0 < found.explained_variance <= 1
    assert Plan.from_json(found.to_json()) == found


@given(st.floats(0.2, 1.0), st.floats(0.2, 1.0))
@settings(deadline=None, max_examples=50)
def test_a_larger_budget_never_costs_less_nor_keeps_less_variance(first: float, second: float) -> None:
    graph, spectra = chain(SIZES, inputs=30), spectra_of(SIZES)
    low, high = sorted((first, second))
    smaller, larger = plan_widths(graph, spectra, macs=low), plan_widths(graph, spectra, macs=high)
    assert larger.cost_after.macs >= smaller.cost_after.macs
    assert (larger.explained_variance or 0) >= (smaller.explained_variance or 0)


def test_every_group_keeps_the_variance_that_is_told_and_none_could_take_another_unit(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    limit = count(graph, {}).params
    more = 0
    for share in np.linspace(0.2, 1.0, 17):
        found = plan_widths(graph, spectra, params=float(share))
        assert found.explained_variance is not None
        at_tau = plan_widths(graph, spectra, explained_variance=found.explained_variance).widths()
        widths = found.widths()
        assert all(widths[name] >= width for name, width in at_tau.items())
        more += widths != at_tau
        for group in graph:
            if widths[group.name] < group.n:
                wider = count(graph, {**widths, group.name: widths[group.name] + 1})
                assert wider.params > share * limit
    assert more


def test_a_dear_unit_that_does_not_fit_leaves_its_budget_to_the_others() -> None:
    graph = chain([10, 20, 10], inputs=100)
    spectra = {"0": spectrum("0", [1.0] * 10, d=100), "1": spectrum("1", [1.0] + [1e-6] * 9, d=10)}
    spectra["1"] = dataclasses.replace(spectra["1"], n=20)
    limit = count(graph, {"0": 5, "1": 1}).params + 100
    found = plan_widths(graph, spectra, params=limit)
    assert found.widths()["0"] == 5
    # a unit of the first group costs more than 100; one of the second 5 columns, its bias and 10 rows
    assert found.widths()["1"] == 1 + 100 // (5 + 1 + 10)
    assert limit - found.cost_after.params < 5 + 1 + 10


def test_what_is_left_goes_to_units_within_a_group_s_rank_first() -> None:
    graph = chain([10, 20, 20, 10], inputs=300)
    spectra = {
        "0": spectrum("0", [1.0] * 10, d=300),
        "1": dataclasses.replace(spectrum("1", [1.0] + [0.0] * 9, d=10), n=20),
        "2": spectrum("2", [1.0] + [1e-6] * 9 + [0.0] * 10, d=20),
    }
    # a unit of the first group costs more than 300, one of the second 7, one of the third 12
    limit = count(graph, {"0": 5, "1": 1, "2": 1}).params + 66
    found = plan_widths(graph, spectra, params=limit)
    assert found.widths() == {"0": 5, "1": 1, "2": 1 + 66 // (1 + 1 + 10)}


def test_ties_are_taken_one_by_one_in_the_order_of_the_graph() -> None:
    graph = chain([4, 4, 4, 2], inputs=4)
    spectra = {f"{i}": spectrum(f"{i}", [1.0] * 4, d=4) for i in range(3)}
    ladder = [
        (1, 1, 1),
        (2, 1, 1),
        (2, 2, 1),
        (2, 2, 2),
        (3, 2, 2),
        (3, 3, 2),
        (3, 3, 3),
        (4, 3, 3),
        (4, 4, 3),
    ]
    for widths in [*ladder, (4, 4, 3), (4, 4, 4)]:
        # a budget that a network of the ladder uses up leaves nothing for other units
        network = dict(zip(spectra, widths, strict=True))
        assert plan_widths(graph, spectra, macs=count(graph, network).macs).widths() == network


def test_the_whole_budget_is_the_whole_network_whatever_the_ranks() -> None:
    graph = chain([12, 10, 4], inputs=3)
    spectra = measure_spectra(chain_weights([12, 10, 4]), graph, dtype=torch.float64)
    assert plan_widths(graph, spectra, explained_variance=1.0).widths()["0"] == 3 - 1
    whole = plan_widths(graph, spectra, macs=1.0)
    assert whole.widths() == {"0": 12, "1": 10}
    assert whole.explained_variance == 1.0
    assert whole.cost_after == whole.cost_before
    assert plan_widths(graph, spectra, params=1e12).widths() == whole.widths()


def test_absolute_and_fractional_budgets_agree(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    whole = count(graph, {})
    absolute = plan_widths(graph, spectra, macs=0.5 * whole.macs, params=0.6 * whole.params)
    fraction = plan_widths(graph, spectra, macs=0.5, params=0.6)
    assert absolute.groups == fraction.groups
    assert fraction.budget == {"params": 0.6, "macs": 0.5}
    assert absolute.cost_after.macs <= 0.5 * whole.macs
    assert absolute.cost_after.params <= 0.6 * whole.params


def test_a_budget_out_of_reach_says_the_nearest(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    least = count(graph, dict.fromkeys(spectra, 1))
    with pytest.raises(SlimfastError) as error:
        plan_widths(graph, spectra, macs=1e-6)
    assert f"the nearest that can is {least.macs:,} macs" in str(error.value)
    assert "\n" not in str(error.value)
    wide = count(graph, {"0": 6, "1": 6, "2": 6})
    with pytest.raises(SlimfastError, match=f"nearest that can is {wide.params:,} params"):
        plan_widths(graph, spectra, params=10, min_width=5, multiple_of=6)
