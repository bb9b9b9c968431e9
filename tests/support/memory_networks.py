"""Networks whose peak memory is at different places: a join, weights, a concatenation, attention.

Quarters of their channels are multiples of 16: at other numbers convolutions on the CPU copy in other ways.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(n: int, m: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n, m, size, padding=size // 2, device="cpu", **options)


class _Residual(nn.Module):
    """At the addition the stream and both of its summands are there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = _conv(3, 64), _conv(64, 128), _conv(128, 64)
        self.last = nn.Linear(64, 5, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(F.relu(self.first(x)))
        x = x + y
        return self.last(F.relu(x).mean(dim=(2, 3)))


class _Concatenation(nn.Module):
    """The concatenation is beside both of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 44, device="cpu"), nn.Linear(44, 25, device="cpu")
        self.three = nn.Linear(69, 8, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        return self.three(torch.cat([x, self.two(x)], dim=-1)).mean(dim=1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, device="cpu"), nn.Linear(width, width, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.out((scores @ v).transpose(1, 2).reshape(b, n, -1))


class _Transformer(nn.Module):
    """Its scores are what takes most."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 32, device="cpu")
        self.norm1, self.norm2 = nn.LayerNorm(32, device="cpu"), nn.LayerNorm(32, device="cpu")
        self.attention = _Attention(32, 4)
        self.mlp = nn.Sequential(nn.Linear(32, 96, device="cpu"), nn.GELU(), nn.Linear(96, 32, device="cpu"))
        self.head = nn.Linear(32, 3, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        return self.head(x + self.mlp(self.norm2(x)))


def _chain() -> tuple[nn.Module, Any]:
    sizes = (40, 400, 300, 200, 6)
    layers = [nn.Linear(n, m, device="cpu") for n, m in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))), torch.zeros(
        3, 40, device="cpu"
    )


def _in_place() -> tuple[nn.Module, Any]:
    model = nn.Sequential(
        _conv(3, 64), nn.BatchNorm2d(64, device="cpu"), nn.ReLU(inplace=True), _conv(64, 64, groups=64),
        nn.ReLU6(inplace=True), _conv(64, 128, 1), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(128, 4, device="cpu"),
    )  # fmt: skip
    return model, torch.zeros(2, 3, 24, 24, device="cpu")


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Any]]] = {
    "residual": lambda: (_Residual(), torch.zeros(2, 3, 32, 32, device="cpu")),
    "chain": _chain,
    "concatenation": lambda: (_Concatenation(), torch.zeros(4, 300, 6, device="cpu")),
    "in place": _in_place,
    "transformer": lambda: (_Transformer(), torch.zeros(2, 64, 10, device="cpu")),
}
