"""A layer or a tensor may be named for the group whose units it computes, wherever groups are named."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import trace_example
from torch import nn
from torch.nn import functional as F

import slimfast
from slimfast.graph import ChannelGraph, trace_channels


class Block(nn.Module):
    """A block whose layers are attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return F.relu(x + self.norm(self.second(F.relu(self.first(x)))))


class Residual(nn.Module):
    """A stem, two blocks, a head: one residual stream, and the inside of each block."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


X = torch.randn(1, 3, 16, 16)
STREAM, ONE, TWO = "stem[residual]", "blocks.0.first", "blocks.1.first"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def graph(model) -> ChannelGraph:
    return trace_channels(model, X)


MEANT = [
    (STREAM, {STREAM}),
    ("stem", {STREAM}),
    ("blocks.0.second", {STREAM}),
    ("blocks.1.norm", {STREAM}),
    ("blocks.1.second.weight", {STREAM}),
    ("blocks.0.norm.running_mean", {STREAM}),
    (ONE, {ONE}),
    ("blocks.0.first.bias", {ONE}),
    ("blocks.*.second", {STREAM}),
    ("blocks.?.first", {ONE, TWO}),
    ("blocks.1.*", {STREAM, TWO}),
    ("*.first.weight", {ONE, TWO}),
    ("residual", {STREAM}),
    ("channel", {ONE, TWO}),
    ("*", {STREAM, ONE, TWO}),
]


@pytest.mark.parametrize(("glob", "groups"), MEANT)
def test_a_name_means_the_groups_whose_units_it_computes(graph, glob, groups):
    assert {group.name for group in graph} == {STREAM, ONE, TWO}
    assert graph.names().meant_by(glob, "here") == groups


@pytest.mark.parametrize(("glob", "groups"), MEANT)
def test_every_argument_takes_the_same_names(model, graph, glob, groups):
    names = {group.name for group in graph}
    assert {group.name for group in trace_channels(model, X, include=[glob])} == groups
    assert {group.name for group in trace_channels(model, X, exclude=[glob])} == names - groups
    spectra = slimfast.measure_spectra(model, graph)
    included = slimfast.plan_widths(graph, spectra, explained_variance=0.5, include=[glob])
    excluded = slimfast.plan_widths(graph, spectra, explained_variance=0.5, exclude=[glob])
    by_hand = slimfast.plan_widths(graph, spectra, overrides={glob: 0.5})
    assert {group.name for group in included.groups if group.chosen == "tau"} == groups
    assert {group.name for group in excluded.groups if group.chosen == "excluded"} == groups
    assert {group.name for group in by_hand.groups if group.chosen == "override"} == groups


def test_what_is_excluded_while_tracing_stays_as_it_is(model):
    graph = trace_channels(model, X, exclude=["blocks.0.second"])
    assert {f.tensor for f in graph.frozen if f.reason == "excluded by name"} >= {
        "stem.weight",
        "blocks.1.second.weight",
    }
    thin = slimfast.prune_channels(model, slimfast.plan_widths(graph, {}, overrides={"*": 0.5}))
    assert (thin.blocks[0].second.out_channels, thin.blocks[0].first.out_channels) == (16, 12)


UNKNOWN = [
    ("blocks.0.secnd", r"no group matches 'blocks\.0\.secnd' \(did you mean 'blocks\.0\.second'\?\)"),
    ("blocks.0", r"no group matches 'blocks\.0' \(did you mean 'blocks\.0\.\*'\?\)"),
    ("head", r"no group matches 'head', which only reads stem\[residual\]$"),
    ("head.weight", r"no group matches 'head\.weight', which only reads stem\[residual\]$"),
    ("chanel", r"no group matches 'chanel' \(did you mean 'channel'\?\)"),
    ("", "no group matches ''$"),
]


@pytest.mark.parametrize(("glob", "message"), UNKNOWN)
def test_a_name_that_means_nothing_is_refused_everywhere(model, graph, glob, message):
    for what in ("include", "exclude"):
        with pytest.raises(ValueError, match=f"^trace_channels: {what}: {message}"):
            trace_channels(model, X, **{what: [glob]})
        with pytest.raises(ValueError, match=f"^plan: {what}: {message}"):
            slimfast.plan_widths(graph, {}, explained_variance=0.5, **{what: [glob]})
    with pytest.raises(ValueError, match=f"^plan: overrides: {message}"):
        slimfast.plan_widths(graph, {}, overrides={glob: 3})


def test_a_layer_with_units_of_two_kinds_needs_a_group_for_a_width():
    torch.manual_seed(0)

    def forward(self, x):
        heads = self.a(x).view(-1, 4, 8) * self.scale
        return self.b(heads.relu().flatten(1))

    model = Net(forward, a=nn.Linear(8, 32), scale=nn.Parameter(torch.randn(4, 8)), b=nn.Linear(32, 4)).eval()
    graph = trace_example(model, torch.randn(2, 8))
    assert {group.name: group.n for group in graph} == {"a": 4, "a#2": 8}
    with pytest.raises(
        ValueError, match=r"overrides: a\.weight has a part in several groups, name one: a, a#2$"
    ):
        slimfast.plan_widths(graph, {}, overrides={"a.weight": 2})
    assert slimfast.plan_widths(graph, {}, overrides={"a": 2}).widths() == {"a": 2, "a#2": 8}
    assert slimfast.plan_widths(graph, {}, overrides={"a.*": 0.5}).widths() == {"a": 2, "a#2": 4}
    spectra = slimfast.measure_spectra(model, graph)
    left = slimfast.plan_widths(graph, spectra, explained_variance=0.4, exclude=["a.weight"])
    assert [group.chosen for group in left.groups] == ["excluded", "excluded"]


def test_a_tied_tensor_answers_to_both_of_its_names():
    torch.manual_seed(0)
    a, b = nn.Linear(8, 16), nn.Linear(8, 16)
    b.weight = a.weight
    model = Net(lambda self, x: self.c(self.a(x).relu() * self.b(x)), a=a, b=b, c=nn.Linear(16, 4)).eval()
    graph = trace_channels(model, torch.randn(2, 8))
    assert graph.tied == {"b.weight": "a.weight"}
    names = graph.names()
    assert names.meant_by("b.weight", "here") == names.meant_by("a.weight", "here") == {graph[0].name}
