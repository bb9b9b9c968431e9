"""One number for several parts of a group, and attributes that are compared with a length."""

from __future__ import annotations

import pytest
import torch
from support.pruning_cases import plan_of
from torch import nn

from slimfast.graph import trace_channels
from slimfast.graph.trial.runner import TrialRunner
from slimfast.pruning.prune import prune_channels


@pytest.fixture
def trials(monkeypatch):
    """The number of forwards of cut networks so far, in a list."""
    counted = []
    record = TrialRunner._record
    monkeypatch.setattr(
        TrialRunner, "_record", lambda self, *given: (counted.append(1), record(self, *given))[1]
    )
    return counted


class Folded(nn.Module):
    """Parts of one layer under one attribute that are one group already, for they meet as a whole."""

    def __init__(self, parts: int, uneven: bool = False) -> None:
        super().__init__()
        self.c, self.parts, self.uneven = 4, parts, uneven
        width = 4 * parts + (4 if uneven else 0)
        self.one, self.two = nn.Linear(3, width), nn.Linear(3, width)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        whole = self.one(x).relu() + self.two(x)
        sizes = [self.c] * self.parts
        parts = whole.split([*sizes, 4] if self.uneven else sizes, -1)
        return self.out(torch.cat(parts, -1) * whole)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_that_are_one_group_already_go_together_place_by_place(parts, trials):
    torch.manual_seed(0)
    model, x = Folded(parts).eval(), torch.randn(2, 3)
    (group,) = trace_channels(model, x)
    assert group.n == 4
    assert len(trials) == 1
    thin = prune_channels(model, plan_of(trace_channels(model, x), {group.name: [0, 3]}))
    assert (thin.c, thin.one.out_features) == (2, 2 * parts)
    rows = [4 * part + unit for part in range(parts) for unit in (0, 3)]
    assert torch.equal(thin.one.weight, model.one.weight[rows])
    assert torch.equal(thin.out.weight, model.out.weight[:, rows])


def test_parts_of_a_group_that_has_others_are_left_whole():
    """Of twelve units eight would become four, and four would stay as they are."""
    graph = trace_channels(Folded(2, uneven=True).eval(), torch.randn(2, 3))
    assert len(graph) == 0
    reasons = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    assert "cannot be made to follow its width" in reasons["one.weight", 0]


class Checks(nn.Module):
    """Compares what it is given with an attribute that no operation is given."""

    def __init__(self, check) -> None:
        super().__init__()
        self.check, self.width, self.heads = check, 12, 3
        self.a, self.o = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        y = self.a(x).view(len(x), self.heads, -1).relu().flatten(1)
        self.check(self, y)
        return self.o(y)


def refuse(wrong: bool) -> None:
    if wrong:
        raise ValueError("of another width")


@pytest.mark.parametrize(
    "check",
    [
        lambda m, y: refuse(y.shape[-1] != m.width),
        lambda m, y: refuse(m.width != y.size(1) or len(y) == 0),
        lambda m, y: refuse((len(y), m.width) != tuple(y.shape)),
    ],
)
def test_an_attribute_that_a_length_is_compared_with_follows_it(check, trials):
    torch.manual_seed(0)
    model, x = Checks(check).eval(), torch.randn(2, 4)
    graph = trace_channels(model, x)
    assert len(trials) == 1
    assert sorted(group.n for group in graph) == [3, 4]
    thin = prune_channels(model, plan_of(graph, {graph[0].name: [0, 1]}))
    assert thin.width == thin.a.out_features < 12


def test_the_width_that_attention_checks_follows_without_a_second_trial(trials):
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.attend = nn.Linear(5, 12), nn.MultiheadAttention(12, 3, batch_first=True)
            self.last = nn.Linear(12, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.attend(x, x, x, need_weights=False)[0])

    graph = trace_channels(Block().eval(), torch.randn(2, 7, 5))
    assert ("attend", "embed_dim") in {(a.module, a.name) for a in graph.attributes}
    assert len(trials) == 1
