"""Products of channels with channels: how many are left at a width, whichever units stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.graph_cases import Net, conv
from torch import nn

import slimfast
from slimfast.graph.axes import Axis
from slimfast.graph.cutting.products import AxisNumbers


@pytest.mark.parametrize("share", [0.5, 0.35, 0.7])
def test_a_plan_of_pooled_products_counts_what_the_thin_network_has(share):
    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x)))).flatten(2)
        return self.o((h @ h.transpose(1, 2)).flatten(1))

    torch.manual_seed(0)
    model = Net(forward, a=conv(3, 12, 3), b=conv(12, 12, 3), o=nn.Linear(144, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    plan = slimfast.plan(model, x, params=share)
    thin = slimfast.prune_channels(model, plan)
    assert sum(p.numel() for p in thin.parameters()) == plan.cost_after.params
    assert thin.o.in_features == thin.b.out_channels**2


@pytest.mark.parametrize("n", [2, 5, 8])
def test_lengths_of_pairs_and_triples_are_those_that_are_kept(n):
    grid = np.indices((n, n, n)).reshape(3, -1)
    first, second, third = grid
    square = np.indices((n, n)).reshape(2, -1)
    upper = np.stack(np.triu_indices(n))
    for rows in ([first, second, third], list(square), list(upper), [second, second]):
        axis = Axis.of(len(rows[0]), [("g", row) for row in rows])
        numbers = AxisNumbers({"g": 0})
        at = numbers.number(axis)
        lengths = numbers.compiled()
        for width in range(1, n + 1):
            keep = np.random.default_rng(width).permutation(n)[:width]
            assert lengths(np.array([width / n]))[at] == len(axis.kept({"g": np.sort(keep)}))
