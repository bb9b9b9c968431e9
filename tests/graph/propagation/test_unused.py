"""What serves for its shape alone freezes nothing."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import summary, trace
from torch import nn

import slimfast


def _positions(self, x, index=-1, use=None):
    """Positions of a length that is read off one channel, as BART's embeddings have it."""
    h = self.a(x)
    one = h[:, :, index]
    batch, length = one.shape[:2]
    h = h + self.positions(torch.arange(length).expand(batch, -1))
    return self.b(torch.relu(h if use is None else use(h, one)))


def _network(**more):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(8, 32), "positions": nn.Embedding(7, 32), "b": nn.Linear(32, 4)}
    return Net(lambda self, x: _positions(self, x, **more), **parts).eval()


@pytest.mark.parametrize("index", [0, -1])
def test_a_channel_that_is_taken_for_its_shape_freezes_nothing(index):
    model, x = _network(index=index), torch.randn(2, 7, 8)
    assert summary(trace(model, 2, 7, 8)) == {"a": ("channel", 32)}
    thin = slimfast.slim(model, x, params=0.5)
    assert thin.a.out_features == thin.positions.embedding_dim < 32
    assert thin(x[:, :5]).shape == (2, 5, 4)


def test_another_channel_may_not_be_there():
    assert not len(trace(_network(index=20), 2, 7, 8))


def _written(h, one):
    h = h.clone()
    h[:, :, 0].copy_(one)
    return h


def _written_through_a_view(h, one):
    one.add_(1)
    return h


def _told(h, one):
    return h + float(one.sum())


USES = {
    "added": lambda h, one: h + one[..., None],
    "through two operations": lambda h, one: h * one.exp().mean(),
    "written": _written,
    "written through a view": _written_through_a_view,
    "told": _told,
}


@pytest.mark.parametrize("use", USES)
def test_a_channel_whose_elements_are_used_stays(use):
    model, x = _network(use=USES[use]), torch.randn(2, 7, 8)
    assert not len(slimfast.trace_channels(model, x))


def test_a_result_of_a_result_that_nobody_uses():
    def forward(self, x):
        h = self.a(x)
        shape = h[..., 0].relu().sum(0, keepdim=True).shape
        return self.b(torch.relu(h)) + torch.ones(shape).sum()

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    assert summary(trace(model, 2, 8)) == {"a": ("channel", 32)}
