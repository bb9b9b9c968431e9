"""Attention in many variations, inside a network, with weights that matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of its own, every variation of which is an argument.

    ``groups`` heads of keys and values serve ``heads`` queries; ``fused``: one layer makes all three;
    ``plain``: written with matrix products; ``between`` works on the queries.
    """

    def __init__(self, heads: int = 4, groups: int = 4, key: int = 5, value: int = 6, *, bias: bool = True,
                 fused: bool = False, plain: bool = False, between: Callable[[Tensor], Tensor] | None = None,
                 width: int = 16) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.groups, self.plain, self.between = heads, groups, plain, between
        self.sizes = (heads * key, groups * key, groups * value)
        if fused:
            self.qkv = nn.Linear(width, sum(self.sizes), bias=bias)
        else:
            self.q, self.k, self.v = (nn.Linear(width, size, bias=bias) for size in self.sizes)
        self.o = nn.Linear(heads * value, width, bias=bias)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        made = self.qkv(x).split(self.sizes, -1) if hasattr(self, "qkv") else None
        q, k, v = made if made is not None else (self.q(x), self.k(memory), self.v(memory))
        q = q.view(*q.shape[:-1], self.heads, -1).transpose(1, 2)
        k, v = (t.view(*t.shape[:-1], self.groups, -1).transpose(1, 2) for t in (k, v))
        q = q if self.between is None else self.between(q)
        if self.plain:
            k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
            out = self.drop((q @ k.transpose(-1, -2) * 0.4).softmax(-1)) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=self.heads != self.groups)
        return self.o(out.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Between(nn.Module):
    """A network around it, so that nothing of attention is an input or an output."""

    def __init__(self, inner: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, width), inner, nn.Linear(width, 3)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return self.last(self.inner(self.first(x), None if memory is None else self.first(memory)))


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases that matter, and weights of uneven size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * 0.4)
    return model
