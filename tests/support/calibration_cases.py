"""What layers read, taken apart by hand, for tests of calibration."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def read_by(model: nn.Sequential, layer: int, x: Tensor) -> Tensor:
    """(variables, positions) at the input of a layer of a sequential network, float64."""
    with torch.no_grad():
        found = model.double()[:layer](x.double())
    model.float()
    return found.movedim(1, 0).reshape(found.shape[1], -1)


def small() -> nn.Sequential:
    """Two convolutions and a linear layer behind a flattening."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()  # fmt: skip


def images(count: int = 12) -> Tensor:
    """What :func:`small` reads."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Words(nn.Module):
    """Two arguments of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.table(tokens) * scale[:, None, None])))
