"""Plans: budgets solved exactly, arguments checked, and models that do not match."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from channel_graphs import chain, chain_weights, joint, units_of
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import SIZES, spectra_of, spectrum
from torch import nn

from benchmarks.accuracy.resnet_cifar import resnet56
from slimfast.costs import count
from slimfast.errors import SlimfastError
from slimfast.graph import InputSpec
from slimfast.graph.groups import Axis, ChannelGraph, Frozen
from slimfast.plans import Plan, check_plan, plan, plan_widths, planning
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.weights import read_tensors

DATA = Path(os.environ.get("SLIMFAST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESNET56 = DATA / "weights" / "resnet56-4bfd9763.th"


@pytest.fixture
def graph() -> ChannelGraph:
    return chain(SIZES, inputs=30)


@pytest.fixture
def spectra() -> dict[str, Spectrum]:
    return spectra_of(SIZES)


# Explained variance


def test_every_group_keeps_its_width_at_tau(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    found = plan_widths(graph, spectra, explained_variance=0.8)
    assert found.widths() == {name: s.width(explained_variance=0.8) for name, s in spectra.items()}
    assert found.explained_variance == 0.8
    assert found.budget == {"explained_variance": 0.8}
    for group in found.groups:
        assert group.explained_variance == spectra[group.name].ratio(group.width) >= 0.8
        assert (group.chosen, group.certified, group.keep) == ("tau", True, None)
    assert found.cost_before == count(graph, {})
    assert found.cost_after == count(graph, found.widths())
    assert found.shapes["1.weight"] == (10, 12)
    assert found.inputs == InputSpec.of(torch.zeros(2, 30))


def test_a_width_that_float32_leaves_open_is_not_certified(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    tau = float(spectra["1"].explained_variance_ratio()[4])
    open_ones = {name: dataclasses.replace(s, error=1e-6, dtype="float32") for name, s in spectra.items()}
    found = plan_widths(graph, open_ones, explained_variance=tau)
    assert [(g.name, g.certified) for g in found.groups] == [("0", True), ("1", False), ("2", True)]
    assert [row.startswith("1 ") for row in str(found).splitlines() if row.endswith("(not certified)")] == [
        True
    ]
    # Rounded up to the whole group, the width is the same on either side.
    assert all(
        g.certified for g in plan_widths(graph, open_ones, explained_variance=tau, multiple_of=8).groups
    )


# Budgets


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


# Widths by hand, exclusions, rounding


def test_overrides_count_as_they_are_and_the_first_glob_wins(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    overrides = {"1": 3, "[12]": 0.5}
    found = plan_widths(graph, spectra, macs=0.6, multiple_of=4, overrides=overrides)
    assert found.widths()["1"] == 3
    assert found.widths()["2"] == 4
    assert found.widths()["0"] % 4 == 0
    assert [g.chosen for g in found.groups] == ["tau", "override", "override"]
    assert found.cost_after.macs <= 0.6 * found.cost_before.macs


def test_widths_by_hand_alone_leave_the_rest_and_need_no_spectra(graph: ChannelGraph) -> None:
    found = plan_widths(graph, {}, overrides={"1": 3, "2": 1.0})
    assert found.widths() == {"0": 12, "1": 3, "2": 8}
    assert found.explained_variance is None
    assert [g.dtype for g in found.groups] == [None] * 3


def test_excluded_groups_are_left_alone(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    found = plan_widths(graph, {"2": spectra["2"]}, explained_variance=0.5, exclude=["[01]"])
    assert found.widths() == {"0": 12, "1": 10, "2": spectra["2"].width(explained_variance=0.5)}
    assert [g.chosen for g in found.groups] == ["excluded", "excluded", "tau"]
    assert plan_widths(graph, spectra, explained_variance=0.5, include=["2"]).widths() == found.widths()
    by_kind = plan_widths(graph, spectra, explained_variance=0.5, exclude=["channel"])
    assert by_kind.cost_after == by_kind.cost_before


def test_a_group_of_one_position_is_left_alone() -> None:
    graph = chain([6, 5, 2], inputs=1)
    spectra = measure_spectra(chain_weights([6, 5, 2], inputs=1), graph)
    assert plan_widths(graph, spectra, explained_variance=0.5).widths()["0"] == 6


def test_a_layer_of_zeros_keeps_one_unit() -> None:
    weights, graph = chain_weights([6, 5, 2]), chain([6, 5, 2])
    weights["1.weight"].zero_()
    spectra = measure_spectra(weights, graph)
    found = plan_widths(graph, spectra, explained_variance=0.99)
    assert found.widths()["1"] == 1
    assert found.groups[1].explained_variance == 1.0


def test_widths_are_multiples_or_whole_and_never_below_the_minimum(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    for tau in np.linspace(0.01, 1.0, 40):
        plain = plan_widths(graph, spectra, explained_variance=float(tau)).widths()
        rounded = plan_widths(
            graph, spectra, explained_variance=float(tau), multiple_of=4, min_width=5
        ).widths()
        for group in graph:
            assert rounded[group.name] == min(group.n, max(8, math.ceil(plain[group.name] / 4) * 4))


def test_heads_are_multiples_in_channels() -> None:
    graph = joint([("q", (48, 60), 0, units_of(12, 4)), ("v", (48, 60), 0, units_of(12, 4))], kind="head")
    spectra = {"g": spectrum("g", [1.0] * 12, d=480)}
    widths = [
        plan_widths(graph, spectra, explained_variance=0.4, multiple_of=m).widths()["g"]
        for m in (1, 2, 8, 16, 48)
    ]
    # 5 heads of 4 channels: 20; the next that 8 divides is 24, 16 divides 32 and 48 all of them
    assert widths == [5, 5, 6, 8, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected explained_variance, params or macs, got none"),
        ({"explained_variance": 0.0}, r"expected explained_variance in \(0, 1\], got 0.0"),
        ({"explained_variance": 1.5}, r"expected explained_variance in \(0, 1\], got 1.5"),
        ({"explained_variance": math.nan}, "got nan"),
        (
            {"explained_variance": 0.9, "macs": 0.5},
            "expected explained_variance or a budget, got both it and macs",
        ),
        ({"macs": 0.0}, "expected macs in .* got 0.0"),
        ({"params": -3.0}, "expected params in .* got -3.0"),
        ({"macs": math.inf}, "got inf"),
        ({"macs": math.nan}, "got nan"),
        ({"macs": 0.5, "multiple_of": 0}, "expected multiple_of to be an integer >= 1, got 0"),
        ({"macs": 0.5, "multiple_of": 2.0}, "expected multiple_of to be an integer >= 1, got 2.0"),
        ({"macs": 0.5, "min_width": -1}, "expected min_width to be an integer >= 1, got -1"),
        ({"macs": 0.5, "overrides": {"1": 11}}, r"expected 1 to 10 units .* got 11 \(1\)"),
        ({"macs": 0.5, "overrides": {"1": 0}}, r"got 0 \(1\)"),
        ({"macs": 0.5, "overrides": {"1": 1.5}}, r"got 1.5 \(1\)"),
        ({"macs": 0.5, "overrides": {"1": True}}, r"got True \(1\)"),
        ({"macs": 0.5, "overrides": {"1": "half"}}, r"got 'half' \(1\)"),
        ({"macs": 0.5, "overrides": {"10": 1}}, r"overrides: no group matches '10' \(did you mean '1'\?\)"),
        (
            {"macs": 0.5, "exclude": ["chanel"]},
            r"exclude: no group matches 'chanel' \(did you mean 'channel'\?\)",
        ),
        ({"macs": 0.5, "include": ["zzz*"]}, "include: no group matches 'zzz[*]'$"),
        ({"macs": 0.5, "exclude": "1"}, "expected exclude to be a list of globs, got the string '1'"),
    ],
)
def test_wrong_arguments(
    graph: ChannelGraph, spectra: dict[str, Spectrum], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_widths(graph, spectra, **arguments)
    assert "\n" not in str(error.value)


def test_a_multiple_larger_than_a_layer_names_it(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    with pytest.raises(SlimfastError, match=r"at most the 8 units of the layer, got 9 \(2: "):
        plan_widths(graph, spectra, macs=0.9, multiple_of=9)
    found = plan_widths(graph, spectra, macs=0.9, multiple_of=9, exclude=["2"])
    assert set(found.widths().values()) <= {9, 12, 10, 8}


def test_spectra_that_are_not_of_this_network(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    cases = {
        "none for group 1": {"0": spectra["0"], "2": spectra["2"]},
        r"expected 10 units over 12 positions, got 8 over 10 \(1\)": {**spectra, "1": spectra["2"]},
        r"expected 10 units over 12 positions, got 10 over 99 \(1\)": {
            **spectra,
            "1": dataclasses.replace(spectra["1"], d=99),
        },
    }
    for message, wrong in cases.items():
        with pytest.raises(SlimfastError, match=message) as error:
            plan_widths(graph, wrong, macs=0.5)
        assert "\n" not in str(error.value)


def test_a_model_without_groups_says_why(graph: ChannelGraph) -> None:
    empty = dataclasses.replace(
        graph, groups=(), frozen=(Frozen("w", 0, "aten.fft_fft2 has no rule", "filter"),)
    )
    with pytest.raises(SlimfastError, match=r"no channel group that can be cut: aten.fft_fft2 has no rule"):
        plan_widths(empty, {}, macs=0.5)


# Text


def test_the_table_has_every_group_and_the_totals(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    found = plan_widths(graph, spectra, macs=0.8, overrides={"2": 3}, exclude=["0"])
    lines = str(found).splitlines()
    assert lines[0].split() == ["group", "kind", "width", "variance", "params", "MACs", "by"]
    assert lines[2].split()[:5] == ["0", "channel", "12", "->", "12"]
    assert lines[2].split()[-1] == "excluded"
    assert lines[4].split()[:5] == ["2", "channel", "8", "->", "3"]
    assert lines[4].split()[-1] == "override"
    # group 1: 10 x 12 + 10 and 8 x 10 weights before, with k units k x 12 + k and 3 x k after
    k = found.widths()["1"]
    assert lines[3].split()[5:9] == [f"{spectra['1'].ratio(k):.4f}", "210", "->", f"{16 * k}"]
    after = found.cost_after
    assert f"macs: asked for 0.8, reached {after.macs:,} of {found.cost_before.macs:,}" in str(found)
    starts = {line.index("->") for line in lines[2:5]}
    assert len(starts) == 1


def test_explain_says_what_is_coupled_and_what_is_left_alone(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    frozen = (
        Frozen("3.weight", 0, "aten.sort takes it apart", "3"),
        Frozen("1.weight", 0, "aten.sort takes it apart", "3"),
        Frozen("0.weight", 1, "network input", ""),
    )
    # A depthwise filter that no group can change, and no reason of its own.
    axes = {**graph.axes, "depthwise.weight": (Axis(9), Axis(1), Axis(3), Axis(3))}
    parameters = graph.parameters | {"depthwise.weight"}
    changed = dataclasses.replace(graph, frozen=frozen, axes=axes, parameters=parameters)
    found = plan_widths(changed, spectra, overrides={"1": 4, "2": 8})
    text = found.explain()
    assert "1 (channel): 10 -> 4 units" in text
    for member in ("producer 1.weight dim 0", "follower 1.bias dim 0", "consumer 2.weight dim 1"):
        assert member in text
    assert "2 (channel): 8 -> 8 units, left whole: by hand, removed together in" in text
    assert text.endswith(
        "left alone, each layer with the reason:\n"
        "  aten.sort takes it apart (3)\n"
        "    3.weight dim 0\n"
        "    1.weight dim 0 (the units of no group)\n"
        "  it is what the network is given\n"
        "    0.weight dim 1\n"
        "  goes along with what is left alone (depthwise filters, tables), or takes no part in this forward\n"
        "    depthwise.weight"
    )
    again = Plan.from_json(found.to_json())
    with pytest.raises(ValueError, match="expected the graph of the model"):
        again.explain()
    assert again.explain(found.graph) == text


# Real modules


class Net(nn.Module):
    """A small residual network."""

    def __init__(self, width: int = 16, inner: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, inner, 3, padding=1)
        self.b = nn.Conv2d(inner, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 8, 8)


def net(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77])
def test_a_plan_in_one_call_is_the_one_of_float64_lapack(share: float) -> None:
    model = net()
    found = plan(model, EXAMPLE, macs=share)
    assert found.graph is not None
    exact = measure_spectra(model, found.graph, dtype=torch.float64, backend="reference")
    expected = plan_widths(found.graph, exact, macs=share)
    assert found.widths() == expected.widths()
    assert found.explained_variance == pytest.approx(expected.explained_variance, rel=1e-13)
    assert all(g.certified for g in found.groups)
    # The group at which the budget ends defines tau, so that float32 never settles it.
    assert "float64" in {g.dtype for g in found.groups}


def test_a_plan_at_one_tau_measures_again_only_what_is_open() -> None:
    model = net()
    easy = plan(model, EXAMPLE, explained_variance=0.5)
    assert {g.dtype for g in easy.groups} == {"float32"}
    exact = measure_spectra(model, easy.graph, dtype=torch.float64)
    name = easy.groups[0].name
    tau = float(exact[name].explained_variance_ratio()[5]) + 1e-10
    hard = plan(model, EXAMPLE, explained_variance=tau)
    assert [g.dtype for g in hard.groups if g.name == name] == ["float64"]
    assert hard.widths()[name] == 7
    assert all(g.certified for g in hard.groups)
    again = [g.name for g in hard.groups if g.dtype == "float64"]
    assert f"measured in float64: {len(again)} of {len(hard.groups)} groups ({', '.join(again)})" in str(hard)
    assert "measured in float64" not in str(easy)


def test_saved_spectra_save_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    first = plan(model, EXAMPLE, macs=0.5)
    spectra = measure_spectra(model, first.graph)
    monkeypatch.setattr(planning, "measure_spectra", None)
    with pytest.raises(TypeError):
        plan(model, EXAMPLE, macs=0.5)
    assert plan(model, EXAMPLE, macs=0.5, spectra=spectra) == first


def test_check_plan_names_the_first_tensor_that_differs() -> None:
    found = plan(net(), EXAMPLE, macs=0.5)
    check_plan(found, net(seed=1))
    with pytest.raises(
        SlimfastError, match=r"a.weight of shape \(12, 16, 3, 3\), got shape \(11, 16, 3, 3\)"
    ):
        check_plan(found, net(inner=11))
    other = net()
    del other.head
    with pytest.raises(SlimfastError, match=r"head.weight of shape \(5, 16\), got one without it"):
        check_plan(found, other)
    other = net()
    other.extra = nn.Linear(2, 3)
    with pytest.raises(SlimfastError, match=r"without extra.weight, got one with it, of shape \(3, 2\)"):
        check_plan(found, other)
    with pytest.raises(SlimfastError) as error:
        check_plan(found, nn.Linear(3, 4))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not RESNET56.exists(), reason=f"no weights at {RESNET56} (set SLIMFAST_DATA)")
def test_resnet56_reaches_half_its_macs_within_one_unit_of_any_group() -> None:
    model = resnet56()
    model.load_state_dict(read_tensors(RESNET56))
    found = plan(model, torch.zeros(1, 3, 32, 32), macs=0.5)
    assert found.graph is not None
    half = found.cost_before.macs / 2
    assert found.cost_after.macs <= half
    # One group's next unit ends the common tau; the others have that tau and what was left of the budget.
    spectra = measure_spectra(model, found.graph, dtype=torch.float64, backend="reference")
    widths = found.widths()
    (ending,) = [n for n, k in widths.items() if abs(spectra[n].ratio(k) - found.explained_variance) < 1e-12]
    at_tau = {n: s.width(explained_variance=found.explained_variance) for n, s in spectra.items()}
    assert widths[ending] == at_tau[ending]
    assert all(widths[n] >= width for n, width in at_tau.items())
    for name, width in widths.items():
        assert width == spectra[name].n or count(found.graph, {**widths, name: width + 1}).macs > half
