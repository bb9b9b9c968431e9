"""The CIFAR-10 residual networks ResNet-20, 32, 44 and 56 (He et al. 2016, section 4.2), option-A shortcuts.

Three stages of 16, 32 and 64 channels, no weights in the shortcuts: where a stage halves the resolution and
doubles the channels, the shortcut drops every second pixel and pads the channels with zeros, half before and
half after. Parameter names follow the widely used weights of Y. Idelbayev's ``pytorch_resnet_cifar10``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
MEAN = (0.485, 0.456, 0.406)
"""Channel means of the inputs the public weights were trained on, after division by 255."""
STD = (0.229, 0.224, 0.225)


class PaddedShortcut(nn.Module):
    """Option A: (N, C, H, W) to (N, pad_before + C + pad_after, ceil(H / stride), ceil(W / stride)).

    ``pad_before`` and ``pad_after`` are plain integers, read at each call: a pruned copy can change them.
    """

    def __init__(self, *, stride: int, pad_before: int, pad_after: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_before = pad_before
        self.pad_after = pad_after

    def forward(self, x: Tensor) -> Tensor:
        kept_pixels = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept_pixels, (0, 0, 0, 0, self.pad_before, self.pad_after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, n_in, H, W) to (N, n_out, H/stride, W/stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            pad_before = (n_out - n_in) // 2
            pad_after = n_out - n_in - pad_before
            self.shortcut = PaddedShortcut(stride=stride, pad_before=pad_before, pad_after=pad_after)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR ResNet of 6 * ``blocks`` + 2 layers: (N, 3, 32, 32) to logits (N, ``classes``)."""

    def __init__(self, *, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        n_in = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(BasicBlock(n_in, width, stride))
                n_in = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(n_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            out = self.get_submodule(f"layer{stage}")(out)
        out = functional.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits

    def load_pretrained(self, path: str | os.PathLike[str]) -> ResNet:
        """Load a public ``.th`` checkpoint (tensors only) into this network; returns it in eval mode.

        Takes {"state_dict": {"module.conv1.weight": ...}} or the inner mapping, with or without ``module.``.

        Raises:
            ValueError: names or shapes do not match this depth; the message names the first that does not.
        """
        load_checkpoint(self, path)
        return self


def load_checkpoint(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """The tensors of a checkpoint into a network, which is then in eval mode; see
    :meth:`ResNet.load_pretrained`.
    """
    checkpoint: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    stored = checkpoint.get("state_dict", checkpoint)
    state = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    expected = network.state_dict()
    # Checkpoints from before torch 0.4.1 have no batch counters, and nothing here reads them.
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros_like(tensor))
    for name in [*expected, *state]:
        wanted, found = (tuple(s[name].shape) if name in s else "not there" for s in (expected, state))
        if wanted != found:
            raise ValueError(f"{os.fspath(path)}: {name} is {found}, this network has {wanted}")
    network.load_state_dict(state)
    network.eval()


def resnet20() -> ResNet:
    """20 layers, 0.27 M parameters, 41 M MACs."""
    return ResNet(blocks=3)


def resnet32() -> ResNet:
    """32 layers, 0.46 M parameters, 69 M MACs."""
    return ResNet(blocks=5)


def resnet44() -> ResNet:
    """44 layers, 0.66 M parameters, 97 M MACs."""
    return ResNet(blocks=7)


def resnet56() -> ResNet:
    """56 layers, 0.85 M parameters, 125 M MACs."""
    return ResNet(blocks=9)
