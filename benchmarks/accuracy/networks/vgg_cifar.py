"""VGG-16 for CIFAR-10 with batch norms: thirteen 3x3 convolutions and one linear layer.

The configuration D of Simonyan and Zisserman 2015 at a resolution of 32: five poolings leave one pixel of 512
channels, so that a single linear layer follows, as is usual on CIFAR-10.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.accuracy.networks.resnet_cifar import load_checkpoint

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """(N, 3, 32, 32) to logits (N, ``classes``); ``stages``: widths of the convolutions between poolings."""

    def __init__(self, stages: Sequence[Sequence[int]] = STAGES, *, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for widths in stages:
            for width in widths:
                conv = nn.Conv2d(n_in, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                n_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(n_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x).flatten(1))
        return logits

    def load_pretrained(self, path: str | os.PathLike[str]) -> VGG:
        """Load weights from a file of ``benchmarks.accuracy.studies.vgg``; returns the network in eval
        mode."""
        load_checkpoint(self, path)
        return self


def vgg16_bn() -> VGG:
    """16 layers, 14.7 M parameters, 313 M MACs."""
    return VGG()
