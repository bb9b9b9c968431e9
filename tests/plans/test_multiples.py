"""Multiples of widths: one number, or one for each glob; what no multiple is narrower than stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast import SlimfastError
from slimfast.plans.multiples import multiples_of, too_narrow

EXAMPLE = torch.zeros(1, 3, 12, 12)


class Mixed(nn.Module):
    """A narrow stem, a grouped convolution whose blocks are 4 channels, and a wide end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.wide = nn.Conv2d(6, 32, 3)
        self.grouped = nn.Conv2d(32, 32, 3, groups=8)
        self.point = nn.Conv2d(32, 40, 1)
        self.fc = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.wide(self.stem(x).relu()).relu()).relu()
        return self.fc(self.point(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


def lengths(thin: nn.Module) -> dict[str, int]:
    return {name: len(module.weight) for name, module in thin.named_children()}


@pytest.mark.parametrize("multiple", [2, 4, 5, 8, 16, 20, 64])
def test_layers_of_the_thin_network_are_multiples_or_whole(model: Mixed, multiple: int) -> None:
    if multiple == 64:
        with pytest.raises(SlimfastError, match=r"stay whole, for no narrower width is a multiple of 64"):
            slimfast.plan(model, EXAMPLE, macs=0.5, multiple_of=multiple)
        return
    plan = slimfast.plan(model, EXAMPLE, macs=0.6, multiple_of=multiple)
    thin = slimfast.prune_channels(model, plan)
    whole = lengths(model)
    assert all(n % multiple == 0 or n == whole[name] for name, n in lengths(thin).items())
    assert lengths(thin) != whole
    assert slimfast.count_module(thin, EXAMPLE).macs <= 0.6 * plan.cost_before.macs


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"stem": 2, "*": 8}, {"stem": 2, "point": 8}),
        # The first that means a group counts.
        ({"*": 8, "stem": 2}, {"stem": 8, "point": 8}),
        ({"block": 16}, {"stem": 1, "point": 1}),
        ({"point.weight": 4, "st*": 3}, {"stem": 3, "point": 4}),
    ],
)
def test_globs_mean_groups_kinds_layers_and_tensors(model: Mixed, wanted, found) -> None:
    graph = slimfast.trace_channels(model, EXAMPLE)
    multiples = multiples_of(graph, wanted)
    assert {name: multiples[name] for name in found} == found
    blocks = [group.name for group in graph if group.kind == "block"]
    assert blocks
    assert all(multiples[name] == wanted.get("block", wanted.get("*", 1)) for name in blocks)


def test_what_is_too_narrow_says_so(model: Mixed) -> None:
    plan = slimfast.plan(model, EXAMPLE, macs=0.6, multiple_of={"stem": 8})
    assert plan.widths()["stem"] == 6
    assert "left whole: no narrower width is a multiple of 8" in plan.explain()
    assert too_narrow(plan.graph, plan.multiple_of) == {"stem": 8}
    # A multiple that leaves a narrower width is no reason.
    assert too_narrow(plan.graph, {"stem": 4}) == {}
    assert too_narrow(plan.graph, 1) == {}


@pytest.mark.parametrize(
    ("multiple", "said"),
    [
        ({"stemm": 8}, r"plan: multiple_of: no group matches 'stemm' \(did you mean 'stem'\?\)"),
        ({"stem": 2.0}, r"expected multiple_of\['stem'\] to be an integer >= 1, got 2.0"),
        ({"stem": -1}, r"expected multiple_of\['stem'\] to be an integer >= 1, got -1"),
        ({3: 8}, "expected globs in multiple_of, got 3"),
        (True, "expected multiple_of to be an integer >= 1, got True"),
        ("8", "expected multiple_of to be an integer >= 1, got '8'"),
    ],
)
def test_multiples_that_cannot_be_meant(model: Mixed, multiple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        slimfast.plan(model, EXAMPLE, macs=0.6, multiple_of=multiple)
