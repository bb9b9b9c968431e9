"""Networks that are called with an object: every verb finds the tensors in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import slimfast
from slimfast.errors import SlimfastError


@dataclasses.dataclass
class Batch:
    """What a data loader of graphs gives."""

    x: torch.Tensor
    edges: torch.Tensor
    scale: float = 1.0


class OnBatches(nn.Module):
    """Sums the neighbours' features, without self loops."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, batch, factor=1.0):
        edges = batch.edges[:, batch.edges[0] != batch.edges[1]]
        h = torch.relu(self.a(batch.x)) * batch.scale
        return self.b(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])) * factor


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return Batch(torch.randn(10, 8), torch.randint(0, 4, (2, 30)))


@pytest.mark.parametrize("example", ["alone", "positional", "by name"])
def test_a_network_of_objects_is_cut_and_verified(batch, example):
    given = {"alone": batch, "positional": (batch, 2.0), "by name": {"batch": batch, "factor": 2.0}}[example]
    model = OnBatches().eval()
    before = batch.x.clone()
    thin = slimfast.slim(model, given, params=0.6)
    assert thin.a.out_features == thin.b.in_features < 32
    assert thin(batch).shape == (10, 4)
    assert torch.equal(batch.x, before)


def test_a_plan_from_a_file_needs_the_object_again(batch, tmp_path):
    model = OnBatches().eval()
    slimfast.plan(model, batch, params=0.6).save(tmp_path / "plan.json")
    plan = slimfast.Plan.load(tmp_path / "plan.json")
    with pytest.raises(SlimfastError, match=r"hold a .*Batch, which a file does not keep; give example="):
        slimfast.prune_channels(model, plan)
    thin = slimfast.prune_channels(model, plan, example=batch)
    assert thin.a.out_features < 32
