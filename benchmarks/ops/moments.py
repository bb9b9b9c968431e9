"""``grouped_moments``, ``grouped_cross_covariance`` and ``grouped_patch_moments`` of one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from benchmarks.roofline import Roofline, covariance_flops
from benchmarks.timing import BOUND, OURS, Case, Row, Run, Target, backend_of
from slimfast.kernels import (
    Convolution,
    grouped_cross_covariance,
    grouped_moments,
    grouped_patch_moments,
)

OP = "moments"
COLUMNS = {"cpu": ("torch", "best", BOUND), "gpu": ("torch", "best", "cuda", "triton", BOUND)}
LIMIT = 1e-5

# What reads, the shape of a batch of its activations, and what the layer stands for.
_CPU: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("linear", (16, 256, 576), "135M decoder, hidden"),
    ("linear", (8, 256, 1536), "135M decoder, MLP"),
    ("linear", (32, 197, 192), "ViT-tiny"),
    ("channels", (16, 64, 56, 56), "1 x 1 convolution"),
    ("channels", (16, 512, 14, 14), "1 x 1 convolution"),
    ("channels", (32, 2048, 7, 7), "1 x 1 convolution"),
    ("cross", (16, 256, 576), "half the variables against all"),
    ("patches", (4, 64, 56, 56), "3 x 3 convolution"),
    ("patches", (8, 256, 14, 14), "3 x 3 convolution"),
    ("depthwise", (8, 128, 28, 28), "3 x 3 depthwise"),
)
_GPU: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("linear", (64, 2048, 576), "135M decoder, hidden"),
    ("linear", (16, 2048, 4096), "8B decoder, hidden"),
    ("channels", (256, 256, 56, 56), "1 x 1 convolution"),
    ("cross", (64, 2048, 576), "half the variables against all"),
    ("patches", (64, 256, 14, 14), "3 x 3 convolution"),
    ("depthwise", (64, 512, 28, 28), "3 x 3 depthwise"),
)
_QUICK = ("channels", (56, 56))


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each layer."""
    return tuple(
        Row(
            f"{kind} {' x '.join(map(str, shape))} ({layer})",
            (kind, shape),
            (Target("torch", 1.5),) if suite == "cpu" else (),
            quick=(kind, shape[2:]) == _QUICK,
        )
        for kind, shape, layer in (_CPU if suite == "cpu" else _GPU)
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: copy to (variables, positions), centre, multiply in float32, add in float64. Best: products of
    what can be viewed as it is, and the mean taken out of them, which loses digits where means are large.
    """
    kind, shape = row.parameters
    generator = torch.Generator(device).manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, device=device).relu_()
    columns, ours, flops = _KINDS[kind](x)
    one, other = columns(x.double())
    exact = _centred(one) @ _centred(other).mT
    total = torch.zeros_like(exact)

    def plain() -> Tensor:
        one, other = (_centred(each) for each in columns(x))
        return total.copy_(one @ other.mT)

    def raw() -> Tensor:
        one, other = columns(x)
        return total.copy_(one @ other.mT).sub_(
            one.sum(-1).double()[..., None] * other.mean(-1).double()[..., None, :]
        )

    variants: dict[str, Run | str] = {OURS: lambda: ours("auto"), "torch": plain, "best": raw}
    if device == "cuda":
        variants |= {"cuda": lambda: ours("cuda"), "triton": lambda: ours("triton")}
    return Case(
        variants,
        error=lambda found: float((found - exact).abs().max() / exact.abs().max()),
        limit=LIMIT,
        bound=roofline.product_seconds(flops, torch.float32),
        facts=backend_of(_OPS.get(kind, "moments"), [x]),
    )


def _centred(columns: Tensor) -> Tensor:
    return columns - columns.mean(-1, keepdim=True)


# Of an input: its columns (..., variables, positions) and those that they are multiplied with, a call of ours
# by a backend that gives the products, and the multiplications and additions of them.
Parts: TypeAlias = tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[str], Tensor], float]
# What is not grouped_moments.
_OPS = {"cross": "cross_covariance", "patches": "patch_moments", "depthwise": "patch_moments"}


def _linear(x: Tensor) -> Parts:
    variables = x.shape[-1]

    def columns(x: Tensor) -> tuple[Tensor, Tensor]:
        each = x.reshape(-1, variables).mT
        return each, each

    flops = covariance_flops([(variables, x.numel() // variables)])
    return columns, lambda backend: grouped_moments([x], dims=-1, backend=backend)[0].squares, flops


def _channels(x: Tensor) -> Parts:
    variables = x.shape[1]

    def columns(x: Tensor) -> tuple[Tensor, Tensor]:
        each = x.movedim(1, 0).reshape(variables, -1)
        return each, each

    flops = covariance_flops([(variables, x.numel() // variables)])
    return columns, lambda backend: grouped_moments([x], dims=1, backend=backend)[0].squares, flops


def _cross(x: Tensor) -> Parts:
    variables = x.shape[-1]

    def columns(x: Tensor) -> tuple[Tensor, Tensor]:
        each = x.reshape(-1, variables).mT
        return each[::2], each

    def ours(backend: str) -> Tensor:
        return grouped_cross_covariance([x[..., ::2]], [x], dims=-1, backend=backend)[0].products

    return columns, ours, 2.0 * (variables // 2) * x.numel()


def _patches(x: Tensor, groups: int = 1) -> Parts:
    samples, channels, *_ = x.shape

    def columns(x: Tensor) -> tuple[Tensor, Tensor]:
        unfolded = torch.nn.functional.unfold(x, 3, padding=1)
        each = unfolded.reshape(samples, groups, channels // groups * 9, -1).movedim(0, 2).flatten(2)
        return each, each

    conv = Convolution((3, 3), (1, 1), (1, 1), (1, 1), groups)
    flops = groups * covariance_flops([(channels // groups * 9, x.numel() // channels)])

    def ours(backend: str) -> Tensor:
        return grouped_patch_moments([x], [conv], backend=backend)[0].squares

    return columns, ours, flops


_KINDS: dict[str, Callable[[Tensor], Parts]] = {
    "linear": _linear,
    "channels": _channels,
    "cross": _cross,
    "patches": _patches,
    "depthwise": lambda x: _patches(x, x.shape[1]),
}
