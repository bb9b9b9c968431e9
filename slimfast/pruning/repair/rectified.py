"""Units of an MLP without data: mean and covariance of what they give, from weights and the norm before them.

Behind a layer norm of scale g and shift s the input is taken as s + g z with z white, so that unit u's value
before its nonlinearity is Gaussian, of mean b_u + w_u . s and covariance (w_u g) . (w_v g). GELU and SiLU are
taken for the ReLU they follow. The covariance of two rectified Gaussians is a series in their correlation,
sum over k of c_k(u) c_k(v) r^k / k!, with c_k the ReLU's Hermite coefficients at each unit's own mean and
spread; its first three terms are used, and on the diagonal the variance itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slimfast.graph.channel_graph import ChannelGraph

_RECTIFIERS = ("aten.relu", "aten.gelu", "aten.silu")


class Moments(NamedTuple):
    """``mean`` (n,) and ``covariance`` (n, n) of a layer's units behind their nonlinearity, float64, CPU."""

    mean: Tensor
    covariance: Tensor


def rectified_moments(
    model: nn.Module, graph: ChannelGraph, tensors: Mapping[str, Tensor]
) -> dict[str, Moments]:
    """Compute the moments behind each linear layer between a layer norm and a rectifier, by its weight."""
    modules = dict(model.named_modules())
    found = {}
    steps = graph.layer_steps()
    for norm, made, bent in zip(steps, steps[1:], steps[2:], strict=False):
        before, layer = (modules.get(step.module) for step in (norm, made))
        if not isinstance(before, nn.LayerNorm) or not isinstance(layer, nn.Linear):
            continue
        if type(layer).forward is not nn.Linear.forward:
            continue
        if before.normalized_shape != (layer.in_features,) or not bent.name.startswith(_RECTIFIERS):
            continue
        names = [f"{made.module}.weight", f"{made.module}.bias"]
        names += [f"{norm.module}.{name}" for name in ("weight", "bias") if getattr(before, name) is not None]
        if not all(name in tensors for name in names):
            # a bias or a norm's scale that is made of something else
            continue
        weight, bias, *affine = (tensors[name].detach().double().cpu() for name in names)
        scale = affine[0] if affine else torch.ones(layer.in_features, dtype=weight.dtype, device="cpu")
        mean = bias + weight @ affine[1] if len(affine) > 1 else bias
        found[names[0]] = moments_behind_relu(mean, weight * scale)
    return found


def moments_behind_relu(mean: Tensor, rows: Tensor) -> Moments:
    """Compute moments of max(0, x), x Gaussian of ``mean`` (n,) and covariance rows rows', to third order."""
    spread = rows.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    m = mean / spread
    inside = torch.special.ndtr(m)
    density = torch.exp(-0.5 * m * m) / math.sqrt(2 * math.pi)
    correlation = (rows / spread[:, None]) @ (rows / spread[:, None]).T
    covariance = torch.zeros_like(correlation)
    for k, coefficient in enumerate((inside, density, -m * density), start=1):
        c = coefficient * spread
        covariance += c * c[:, None] * correlation**k / math.factorial(k)
    first = spread * (m * inside + density)
    second = spread.square() * ((m * m + 1) * inside + m * density)
    variance = (second - first.square()).maximum(covariance.diagonal())
    return Moments(first, covariance.diagonal_scatter(variance))
