"""Layers of torch-geometric: edges are dropped and added by value, arguments may be one ``Data`` object."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast

geometric = pytest.importorskip("torch_geometric", reason="torch-geometric is not installed")

NODES = 20
KINDS = {
    "GCNConv": {},
    "GATConv": {"heads": 4},
    "GATv2Conv": {"heads": 4},
    "SAGEConv": {},
    "ChebConv": {"K": 3},
}


class Network(nn.Module):
    """Two layers of a kind and a classifier of nodes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer, more = getattr(geometric.nn, kind), KINDS[kind]
        heads = more.get("heads", 1)
        self.a, self.b = layer(16, 32, **more), layer(32 * heads, 32, **more)
        self.out = nn.Linear(32 * heads, 5)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(x, edges)), edges)))


class OfData(Network):
    """The same of one object."""

    def forward(self, data):
        return super().forward(data.x, data.edge_index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_data", [False, True])
def test_graph_networks_are_cut(kind, of_data):
    torch.manual_seed(0)
    edges = torch.randint(0, NODES, (2, 60))
    edges[:, :3] = 5  # self loops, which some layers drop and others keep
    given = (torch.randn(NODES, 16), edges)
    data = geometric.data.Data(x=given[0], edge_index=edges)
    model = (OfData if of_data else Network)(kind).eval()
    thin = slimfast.slim(model, data if of_data else given, params=0.5)
    count = [sum(p.numel() for p in net.parameters()) for net in (model, thin)]
    assert count[1] <= 0.5 * count[0]
    assert (thin(data) if of_data else thin(*given)).shape == (NODES, 5)
    fewer = (given[0][:7], torch.randint(0, 7, (2, 11)))
    other = (geometric.data.Data(x=fewer[0], edge_index=fewer[1]),) if of_data else fewer
    assert thin(*other).shape == (7, 5)
