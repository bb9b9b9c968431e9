"""A small network, its data and its training, for tests of rounds."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Convolutions with batch norms, and a head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.body = nn.Conv2d(24, 32, 3, padding=1)
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


EXAMPLE = torch.zeros(2, 3, 8, 8)


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)]


def train(model, optimizer, steps=3, seed=2, also=()):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for each in also:
            each(model)
