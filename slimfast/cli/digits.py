"""The scans of digits that the demo learns to read, and the network that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimfast.errors import SlimfastError

TRAIN, TEST = 1000, 500
"""Of the 1797 scans; the rest are for validation."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            projection = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for scans of 8 x 8 pixels: (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(Block(16, 16, 1), Block(16, 16, 1)),
            nn.Sequential(Block(16, 32, 2), Block(32, 32, 1)),
            nn.Sequential(Block(32, 64, 2), Block(64, 64, 1)),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.stages(self.stem(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(out)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Scans:
    """Digit scans (N, 1, 8, 8) in [-1, 1] with their digits (N,), to iterate over in batches.

    With ``shift``, batches are shuffled anew at each pass by torch's global generator, the incomplete last
    one is left out, and each is moved by up to ``shift`` pixels.
    """

    images: Tensor
    digits: Tensor
    batch: int = 64
    shift: int = 0

    def __len__(self) -> int:
        return len(self.digits) // self.batch if self.shift else -(-len(self.digits) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = (
            torch.randperm(len(self.digits), device="cpu")
            if self.shift
            else torch.arange(len(self.digits), device="cpu")
        )
        for step in range(len(self)):
            chosen = order[step * self.batch : (step + 1) * self.batch]
            images = self.images[chosen]
            if self.shift:
                down, right = torch.randint(2 * self.shift + 1, (2,), device="cpu").tolist()
                padded = functional.pad(images, (self.shift,) * 4, value=-1.0)
                images = padded[:, :, down : down + 8, right : right + 8]
            yield images, self.digits[chosen]


def load_scans() -> tuple[Scans, Scans, Scans]:
    """Load the scans as (train, validation, test), always the same ones."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SlimfastError("the demo needs scikit-learn: install the extra 'slimfast[demo]'") from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    digits = torch.tensor(bunch.target, dtype=torch.int64, device="cpu")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0), device="cpu")
    train, validation, test = order[:TRAIN], order[TRAIN:-TEST], order[-TEST:]
    return (
        Scans(images[train], digits[train], shift=1),
        Scans(images[validation], digits[validation]),
        Scans(images[test], digits[test]),
    )
