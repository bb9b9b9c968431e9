"""Small networks with every structure that surgery must follow, and plans that keep units at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.plans import GroupPlan, Plan
from slimfast.plans.costs import count
from slimfast.pruning.prune import prune_channels


class SqueezeExcite(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(n, 4, 1), nn.Conv2d(4, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ConvNet(nn.Module):
    """Residual, depthwise, grouped, squeeze-excite, concat, flatten to linear; f(0) != 0 in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.excite = SqueezeExcite(12)
        self.project = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.group_norm = nn.GroupNorm(4, 12)
        self.branch = nn.Conv2d(8, 6, 1)
        self.classifier = nn.Linear(18 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).sigmoid()
        x = x + self.project(self.excite(functional.hardswish(self.depthwise(self.expand(x)))))
        x = torch.cat([self.group_norm(self.grouped(x)).relu(), self.branch(x).cos()], 1)
        return self.classifier(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class OptionA(nn.Module):
    """Zero-padded shortcuts whose two amounts are one tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.pads = [0, 0, 0, 0, 2, 2]
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (self.second(x) + functional.pad(x[:, :, ::2, ::2], self.pads)).relu()
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Fused qkv with its sizes as attributes, one of them derived from the others."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.inner_dim = self.num_heads * self.head_dim
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, self.inner_dim))


class Transformer(nn.Module):
    """Token and position embeddings, attention, a gated MLP, RMS norms, logits tied to the embedding."""

    def __init__(self, dim: int = 16, heads: int = 4, tokens: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, dim)
        self.position = nn.Parameter(torch.randn(1, 6, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.gate, self.down = nn.Linear(dim, 2 * 24), nn.Linear(24, dim)
        self.logits = nn.Linear(dim, tokens, bias=False)
        self.logits.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.glu(self.gate(self.norm2(x))))
        return self.logits(self.norm3(x))


CASES: dict[str, tuple[type[nn.Module], Any]] = {
    "conv": (ConvNet, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))),
    "option-a": (OptionA, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))),
    "transformer": (Transformer, torch.tensor([[1, 4, 2, 9, 10, 0], [3, 3, 7, 5, 0, 8]])),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """A network in eval mode whose norms are not the identity, and an example of its input."""
    kind, example = CASES[name]
    torch.manual_seed(0)
    model = kind().eval()
    for tensor_name, tensor in named_tensors(model).items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            # Positive, so that it serves a variance too.
            tensor.data = torch.rand(tensor.shape) + 0.5
            if tensor_name.endswith(("bias", "mean")):
                tensor.data -= 1.0
    return model, example


def plan_of(
    graph: ChannelGraph, keeps: Mapping[str, Any], *, widths: Mapping[str, int] | None = None
) -> Plan:
    """A plan that keeps these units, or so many of them; groups not named keep all."""
    groups = []
    for group in graph:
        keep = keeps.get(group.name)
        width = len(keep) if keep is not None else (widths or {}).get(group.name, group.n)
        kept = tuple(int(i) for i in keep) if keep is not None else None
        groups.append(GroupPlan(group.name, group.kind, group.n, width, 1.0, True, kept))
    before, after = count(graph, {}), count(graph, {group.name: group.width for group in groups})
    shapes = {name: tuple(axis.length for axis in axes) for name, axes in graph.axes.items()}
    return Plan(tuple(groups), None, {}, 1, before, after, shapes, graph.inputs, graph=graph)


def random_keeps(graph: ChannelGraph, seed: int, share: float = 0.6) -> dict[str, np.ndarray]:
    """About this share of each group's units, at least one, chosen at random."""
    rng = np.random.default_rng(seed)
    return {g.name: np.sort(rng.choice(g.n, max(1, round(g.n * share)), replace=False)) for g in graph}


def random_plan(model: nn.Module, example: Any, seed: int = 0, share: float = 0.6) -> Plan:
    graph = trace_channels(model, example)
    return plan_of(graph, random_keeps(graph, seed, share))


def thin_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    model, x = build(name)
    return prune_channels(model, random_plan(model, x), verify=False), x
