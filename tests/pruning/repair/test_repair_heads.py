"""Repair of attention: what a removed head computed, taken over by heads like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.repair_cases import planned, repaired
from torch import Tensor, nn

import slimfast
from slimfast.calibration.consumers import consumers_of
from slimfast.pruning.repair.heads import head_covariances


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.proj = nn.Linear(8, 8)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            f(x).reshape(b, t, self.heads, 2).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


def test_a_removed_head_that_copies_another_is_made_up_for() -> None:
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        for layer in (model.query, model.key, model.value):
            layer.weight[6:8], layer.bias[6:8] = layer.weight[0:2], layer.bias[0:2]
    batch = torch.randn(16, 5, 8)
    graph = slimfast.trace_channels(model, batch[:2])
    head = next(g.name for g in graph if g.kind == "head")
    thin = repaired(model, batch, {head: [0, 1, 2]})
    assert thin.proj.weight.shape == (8, 6)
    assert torch.allclose(thin(batch), model(batch), atol=1e-4)
    data_free = repaired(model, batch, {head: [0, 1, 2]}, "weights")
    cut = slimfast.prune_channels(model, planned(model, batch[:2], {head: [0, 1, 2]}))
    assert (data_free(batch) - model(batch)).abs().max() < 0.1 * (cut(batch) - model(batch)).abs().max()


class Fused(Attention):
    """Key, value and query, in this order, from one layer."""

    def __init__(self) -> None:
        super().__init__()
        del self.query, self.key, self.value
        self.kvq = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        k, v, q = self.kvq(x).reshape(b, t, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("kind", [Attention, Fused])
def test_heads_vary_together_as_their_values_and_their_patterns_are_alike(kind: Any) -> None:
    torch.manual_seed(0)
    model, example = kind().eval(), torch.randn(2, 5, 8)
    if kind is Fused:
        k, v, q = model.kvq.weight.detach().double().reshape(3, 4, 2, 8)
    else:
        layers = (model.key, model.value, model.query)
        k, v, q = (layer.weight.detach().double().reshape(4, 2, 8) for layer in layers)
    graph = slimfast.trace_channels(model, example)
    found = consumers_of(model, graph)[0]
    tensors = dict(model.named_parameters())
    covariance = head_covariances(model, graph, found, tensors)["proj.weight"]
    assert isinstance(covariance, Tensor)
    for h, g in ((0, 0), (1, 3), (2, 0)):
        forms = [q[i].T @ k[i] for i in (h, g)]
        alike = (forms[0] * forms[1]).sum() / (forms[0].norm() * forms[1].norm())
        block = covariance[2 * h : 2 * h + 2, 2 * g : 2 * g + 2]
        assert torch.allclose(block, alike * v[h] @ v[g].T, atol=1e-12)


class WideValues(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.proj = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            f(x).reshape(b, t, self.heads, size).transpose(1, 2)
            for f, size in ((self.query, 2), (self.key, 2), (self.value, 3))
        )
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


def test_heads_of_another_build_are_left_with_the_reason() -> None:
    torch.manual_seed(0)
    model, batch = WideValues(), torch.randn(4, 5, 8)
    head = next(g.name for g in slimfast.trace_channels(model, batch[:2]) if g.kind == "head")
    thin = repaired(model, batch, {head: [0, 1, 3]}, "weights")
    report = slimfast.repair_report(thin)
    assert report.fits == {}
    assert report.left["proj.weight"] == "the heads of proj have no query, key and value of one shape"
