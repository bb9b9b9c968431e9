"""Never wrong: random networks of every kind of layer compute, cut at random, what the masked ones do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps, reasons
from torch import Tensor, nn

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.graph.recording.network import Network


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Dense(nn.Module):
    """Concatenates what it makes to what it got."""

    def __init__(self, c: int, more: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.gelu(self.conv(x))], 1)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)


class Excite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Attend(nn.Module):
    """Attention over the positions of the map; c channels in, heads * dim between."""

    def __init__(self, c: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim, self.scale = heads, dim, dim**-0.5
        self.qkv, self.proj = nn.Linear(c, 3 * heads * dim), nn.Linear(heads * dim, c)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, -1, h, w)


class Divided(nn.Module):
    """Attention whose head dimensions are the channels divided by the heads."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        b, n, c = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = ((q * 0.4) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c)).transpose(1, 2).reshape(x.shape)


class Unequal(nn.Module):
    """Parts of one size and a smaller last one, each filtered on its own."""

    def __init__(self, c: int) -> None:
        super().__init__()
        sizes = [part.shape[0] for part in torch.zeros(c).chunk(3)]
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1, groups=n) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.convs), 1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Scale(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class Scan(nn.Module):
    """Reads the positions of the map one after the other, in both directions."""

    def __init__(self, c: int, kind: str) -> None:
        super().__init__()
        self.read, self.back = getattr(nn, kind)(c, 6, batch_first=True, bidirectional=True), nn.Linear(12, c)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        said, _ = self.read(x.flatten(2).transpose(1, 2))
        return x + self.back(said).transpose(1, 2).reshape(b, -1, h, w)


class PadAndAdd(nn.Module):
    """A shortcut without parameters from c to c + 2 * pad channels."""

    def __init__(self, c: int, pad: int) -> None:
        super().__init__()
        self.pad, self.conv = pad, nn.Conv2d(c, c + 2 * pad, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.pad(x, (0, 0, 0, 0, self.pad, self.pad))


def _random_network(generator: np.random.Generator) -> nn.Module:
    """A stem, four to eight random layers, a classifier; c is divisible by 4 throughout."""
    c = int(generator.choice([8, 12]))
    layers: list[nn.Module] = [nn.Conv2d(3, c, 3, padding=1)]
    for _ in range(int(generator.integers(4, 9))):
        kind = int(generator.integers(18))
        if kind == 0:
            layers.append(Residual(c))
        elif kind == 1:
            layers.append(Dense(c, 4))
            c += 4
        elif kind == 2:
            layers += [nn.Conv2d(c, 16, 1), Gate()]
            c = 8
        elif kind == 3:
            layers.append(Excite(c))
        elif kind == 4:
            layers.append(Attend(c, int(generator.integers(2, 4)), 3))
        elif kind == 5:
            layers.append(Shuffle())
        elif kind == 6:
            layers.append(Scale(c))
        elif kind == 7:
            layers += [nn.Conv2d(c, 12, 3, padding=1, groups=2), nn.Hardswish()]
            c = 12
        elif kind == 8:
            layers += [nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), nn.Conv2d(2 * c, 8, 1)]
            c = 8
        elif kind == 9:
            layers += [nn.GroupNorm(4, c), nn.SiLU()]
        elif kind == 10:
            layers += [nn.Conv2d(c, 8, 1), nn.PixelUnshuffle(2), nn.PixelShuffle(2)]
            c = 8
        elif kind == 11:
            layers += [nn.InstanceNorm2d(c, affine=True), nn.LeakyReLU(), nn.AvgPool2d(3, 1, 1)]
        elif kind == 12:
            layers += [nn.ConvTranspose2d(c, 8, 1), nn.PReLU(8), nn.MaxPool2d(3, 1, 1)]
            c = 8
        elif kind == 13:
            layers.append(PadAndAdd(c, 2))
            c += 4
        elif kind == 14:
            layers.append(Divided(c, int(generator.choice([2, 4]))))
        elif kind == 15:
            layers.append(Unequal(c))
        elif kind == 16:
            layers.append(Scan(c, ["LSTM", "GRU", "RNN"][int(generator.integers(3))]))
        else:
            layers += [nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c), nn.Sigmoid()]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, 5)]
    return nn.Sequential(*layers)


def _randomised(network: nn.Module, seed: int) -> nn.Module:
    """Float64 weights and statistics that are nowhere 0 or 1."""
    torch.manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if "var" in name else 0.5 * torch.randn_like(tensor)
                )
    return network


def _masked(network: nn.Module, cut: Cut) -> nn.Module:
    wide, masked = named_tensors(network), {}
    for name, dims in cut.tensor_cuts.items():
        zeroed = wide[name].detach().clone()
        for dim, kept in dims.items():
            gone = np.setdiff1d(np.arange(zeroed.shape[dim]), kept)
            zeroed.index_fill_(dim, torch.from_numpy(gone), 0)
        if name in cut.graph.parameters:
            masked[name] = zeroed
    return copy_with(network, masked)


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_network_computes_what_the_masked_one_does(seed):
    generator = np.random.default_rng(seed)
    network = _randomised(_random_network(generator), seed)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = trace_channels(network, x)
    if not len(graph):
        # everything is coupled to one unit: that must have been said
        assert ("0.weight", 0) in reasons(graph)
        return
    keeps = random_keeps(graph, seed)
    cut = Cut(graph, keeps)
    thin, masked = cut.thin_copy(Network.of(network)), _masked(network, cut)
    with torch.no_grad():
        wide_out, masked_out, thin_out = network(x), masked(x), thin(x)
    scale = masked_out.abs().max()
    assert (thin_out - masked_out).abs().max() <= 1e-10 * scale
    assert (wide_out - masked_out).abs().max() > 1e-6 * scale
    # a size of -1 stands for any: it is the shapes that must agree
    assert [m for m in check_thin(thin, cut) if m.got != "-1"] == []
