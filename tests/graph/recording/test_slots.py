"""Modules that keep something in ``__slots__``, which copies of modules leave out by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.graph.recording.module_copies import copy_with


class Slotted(nn.Module):
    __slots__ = ("note", "scale", "unset")

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 4)
        self.scale, self.note = 2.0, {"layers": [self.first], "weight": self.last.weight}

    def forward(self, x):
        return self.last(self.first(x).relu() * self.scale)


class Below(Slotted):
    __slots__ = "more"

    def __init__(self) -> None:
        super().__init__()
        self.more = 3.0

    def forward(self, x):
        return super().forward(x) + self.more


@pytest.mark.parametrize("kind", [Slotted, Below])
@pytest.mark.parametrize("nested", [False, True])
def test_slots_come_along(kind, nested):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), kind()) if nested else kind()
    x = torch.randn(3, 8)
    thin = slimfast.slim(model, x, params=0.5)
    wide, own = (model[1], thin[1]) if nested else (model, thin)
    assert own.first.out_features < 16
    assert own.scale == wide.scale
    # What they hold of the network is the copy's.
    assert own.note["layers"][0] is own.first
    assert own.note["weight"] is own.last.weight
    assert not hasattr(own, "unset")
    thin(x).sum().backward()


def test_a_copy_computes_the_same():
    model, x = Below(), torch.randn(3, 8)
    assert torch.equal(copy_with(model, {})(x), model(x))
