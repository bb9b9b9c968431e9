"""Entries into a network that no forward leads to are told: no trace has seen what they do with a width."""

from __future__ import annotations

import functools

import torch
from torch import nn

import slimfast
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.unreached import unreached_methods

X = torch.randn(2, 3, 6, 6)


class Halves(nn.Module):
    """Has a second forward, as blocks that are exported have."""

    def __init__(self, c=12):
        super().__init__()
        self.c, self.first, self.last = c, nn.Conv2d(3, 2 * c, 1), nn.Conv2d(2 * c, 4, 1)

    def forward(self, x):
        return self.last(torch.cat(self.first(x).chunk(2, 1), 1))

    def forward_split(self, x):
        return self.last(torch.cat(self.first(x).split((self.c, self.c), 1), 1))

    def describe(self):
        return f"{self.first.out_channels} channels"


class Pretraining(nn.Module):
    """Runs its layers through methods, some of them from within a function."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.decoder = Halves(), nn.Linear(4, 3), nn.Linear(4, 6)

    def features(self, x):
        return self.body(x).mean((2, 3))

    def forward(self, x):
        return next(self.classify(features) for features in [self.features(x)])

    def classify(self, x):
        return self.head(x)

    def reconstruct(self, x):
        return [self.decoder(y) for y in self.features(x)]

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def remembered(self, x):
        return self.decoder(x)


def test_methods_that_run_layers_and_that_nothing_calls_are_found():
    assert unreached_methods(Network.of(Halves())) == ["Halves.forward_split"]
    assert unreached_methods(Network.of(Pretraining())) == [
        "Pretraining.reconstruct",
        "Pretraining.remembered",
        "Halves.forward_split",
    ]


def test_a_method_of_a_base_class_is_the_classs_own():
    class Other(Halves):
        def forward(self, x):
            return self.forward_split(x)

    assert unreached_methods(Network.of(Other())) == []

    class Twice(Halves):
        def forward_twice(self, x):
            return self.forward(x), self.first(x)

    assert unreached_methods(Network.of(Twice())) == ["Twice.forward_split", "Twice.forward_twice"]


def test_networks_of_pytorch_alone_have_none():
    layers = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8), nn.TransformerDecoderLayer(8, 2, 8))
    assert unreached_methods(Network.of(layers)) == []


def test_the_explanation_says_so_and_the_attribute_follows():
    plan = slimfast.plan(Halves().eval(), X, params=0.6)
    assert "no forward leads to Halves.forward_split, which run layers too: what they read" in plan.explain()
    model = Halves().eval()
    thin = slimfast.slim(model, X, params=0.6)
    torch.testing.assert_close(thin.forward_split(X), thin(X))
    assert thin.c < model.c
