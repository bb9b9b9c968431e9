"""Numbers in the arithmetic that a width changes: the group whose width it is, and no other, is inexact."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from torch import nn

import slimfast
from slimfast.graph import trace_channels


def _attention(self, x):
    """Heads and positions of a stream, of which the scores have the heads alone."""
    x = self.a(x)
    batch, length, _ = x.shape
    key, value = self.kv(x).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
    query = self.q(x).view(batch, length, self.heads, -1).transpose(1, 2)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return self.o((scores.softmax(-1) @ value).transpose(1, 2).flatten(2) + x)


def _attention_by_steps(self, x):
    """The same with what came before kept in lists."""
    x = self.a(x)
    keys, values, out = [], [], []
    for at in range(x.shape[1]):
        key, value = self.kv(x[:, at]).view(len(x), 2, self.heads, -1).unbind(1)
        keys.append(key)
        values.append(value)
        query = self.q(x[:, at]).view(len(x), self.heads, 1, -1)
        scores = query @ torch.stack(keys, 2).transpose(-1, -2) / query.shape[-1] ** 0.5
        out.append((scores.softmax(-1) @ torch.stack(values, 2)).flatten(1))
    return self.o(torch.stack(out, 1) + x)


@pytest.mark.parametrize("forward", [_attention, _attention_by_steps])
@pytest.mark.parametrize("dim", [6, 12])
def test_positions_that_share_a_stream_with_heads_are_those_that_scale(forward, dim):
    torch.manual_seed(0)
    width = 4 * dim
    layers = {"a": (5, width), "q": (width, width), "kv": (width, 2 * width), "o": (width, 3)}
    parts = {name: nn.Linear(*sizes) for name, sizes in layers.items()}
    model = Net(forward, heads=4, **parts).eval()
    x = torch.randn(2, 4, 5)
    graph = trace_channels(model, x)
    assert {group.n: group.inexact is not None for group in graph} == {4: False, dim: True}
    thin = slimfast.slim(model, x, params=0.5)
    assert "its width changes a factor" in str(slimfast.verification_report(thin))
    assert thin(torch.randn(3, 7, 5)).shape == (3, 7, 3)
