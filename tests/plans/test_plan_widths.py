"""Plans: widths at one explained variance, by hand, rounded or left alone; arguments and spectra checked."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from support.channel_graphs import chain, chain_weights, joint, units_of
from support.plan_cases import spectrum

from slimfast.checkpoints import plan_checkpoint
from slimfast.errors import SlimfastError
from slimfast.graph import InputSpec
from slimfast.graph.channel_graph import ChannelGraph, Frozen
from slimfast.plans import plan, plan_widths
from slimfast.plans.costs import count
from slimfast.pruning import slim
from slimfast.spectra import Spectrum, measure_spectra

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
    assert [row.startswith("1 ") for row in str(found).splitlines() if row.endswith(" tau?")] == [True]
    # Rounded up to the whole group, the width is the same on either side.
    assert all(
        g.certified for g in plan_widths(graph, open_ones, explained_variance=tau, multiple_of=8).groups
    )


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


def test_a_floor_is_units_a_share_or_either_by_glob(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    def least(min_width: Any, **others: Any) -> dict[str, int]:
        return plan_widths(graph, spectra, explained_variance=1e-9, min_width=min_width, **others).widths()

    wide = {group.name: group.n for group in graph}
    for share in (0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0):
        # The fewest whole units that are at least the share, exactly.
        exact = {name: math.ceil(Fraction(share).limit_denominator(100) * n) for name, n in wide.items()}
        assert least(share) == exact
    assert least({"1": 0.5, "*": 3}) == {**dict.fromkeys(wide, 3), "1": math.ceil(wide["1"] / 2)}
    assert least({"*": 3, "1": 0.5}) == dict.fromkeys(wide, 3)
    assert least({"1": 4}) == {**dict.fromkeys(wide, 1), "1": 4}
    assert least(0.5, multiple_of=4) == {
        name: min(n, math.ceil(math.ceil(n / 2) / 4) * 4) for name, n in wide.items()
    }
    with pytest.raises(SlimfastError, match="what may help: a smaller multiple_of or min_width"):
        plan_widths(graph, spectra, params=0.2, min_width=0.9)


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
        ({}, "expected explained_variance, params, macs, latency or peak_memory, got none"),
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
        ({"macs": 0.5, "min_width": -1}, r"expected min_width to be an integer >= 1, or a share .* got -1"),
        ({"macs": 0.5, "min_width": 0.0}, "got 0.0"),
        ({"macs": 0.5, "min_width": 2.0}, "got 2.0"),
        ({"macs": 0.5, "min_width": math.nan}, "got nan"),
        ({"macs": 0.5, "min_width": True}, "got True"),
        ({"macs": 0.5, "min_width": {"1": 0}}, r"expected min_width\['1'\] to be an integer .* got 0"),
        ({"macs": 0.5, "min_width": {1: 2}}, "expected globs in min_width, got 1"),
        ({"macs": 0.5, "min_width": {"zzz": 2}}, "min_width: no group matches 'zzz'"),
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


def test_a_layer_narrower_than_the_multiple_stays_whole(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    found = plan_widths(graph, spectra, macs=0.9, multiple_of=9)
    assert found.widths()["2"] == 8
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


@pytest.mark.parametrize("verb", [plan, plan_widths, slim, plan_checkpoint])
def test_every_verb_that_plans_lists_the_same_options_and_refuses_others(verb: Callable[..., Any]) -> None:
    defaults = {
        "explained_variance": None,
        "params": None,
        "macs": None,
        "multiple_of": 1,
        "min_width": 1,
        "overrides": None,
        "include": None,
        "exclude": None,
    }
    parameters = inspect.signature(verb).parameters.values()
    assert defaults.items() <= {p.name: p.default for p in parameters}.items()
    assert {p.kind for p in parameters if p.name in defaults} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters)
    with pytest.raises(TypeError, match=rf"{verb.__name__}\(\) .* 'parms' \(did you mean 'params'\?\)"):
        verb(parms=0.5)
