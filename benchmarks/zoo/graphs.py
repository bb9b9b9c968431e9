"""Graph networks of torch-geometric, two convolutions each, on a small random graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NODES, EDGES, FEATURES, HIDDEN, CLASSES = 12, 40, 16, 32, 5

Built = tuple[nn.Module, tuple[Tensor, Tensor]]


class TwoConvolutions(nn.Module):
    """Two graph convolutions with a ReLU between them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden: Tensor = self.first(x, edge_index).relu()
        found: Tensor = self.second(hidden, edge_index)
        return found


def _network(name: str, *, heads: int = 1, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        convolution = getattr(importlib.import_module("torch_geometric.nn"), name)
        several = {"heads": heads} if heads > 1 else {}
        model = TwoConvolutions(
            convolution(FEATURES, HIDDEN, **several, **options),
            convolution(HIDDEN * heads, CLASSES, **options),
        )
        return model, (torch.randn(NODES, FEATURES), torch.randint(0, NODES, (2, EDGES)))

    return build


NETWORKS: dict[str, Callable[[], Built]] = {
    "GCN": _network("GCNConv"),
    "GAT": _network("GATConv", heads=4),
    "GATv2": _network("GATv2Conv", heads=4),
    "SAGE": _network("SAGEConv"),
    "Cheb": _network("ChebConv", K=3),
    "GraphConv": _network("GraphConv"),
    "TransformerConv": _network("TransformerConv", heads=4),
}
