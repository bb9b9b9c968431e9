"""The least squares of one layer: weights for what it gets that stand for its weights on what it got.

A layer of the wide network computes W b + c of what it reads; in the thin one it gets a instead, fewer and
perhaps changed variables. With C = argmin E |b - C a|^2 its best weights are W C, whatever follows. Where it
has a bias, or a batch norm follows, both sides are centred and the mean goes there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.pruning.repair.report import Fit

# Shares of the mean variance that damping is chosen from, by the error on the last quarter of the positions.
DAMPINGS = tuple(10.0**power for power in range(-8, 2))


def solve(
    a: Tensor, b: Tensor, kept: Tensor, weight: Tensor, *, centred: bool, damping: float = 0.0
) -> tuple[Tensor, Tensor, Fit]:
    """Solve for the weights of a thin layer that stand for ``weight`` on what the wide network's layer got.

    C = C0 + (S_ba - C0 S_aa) (S_aa + d m I)^-1 with C0 the cut itself, which keeps row ``kept[j]`` for
    variable j, and m the mean variance of a: no evidence, no change. d is the best of ``DAMPINGS`` on
    held-out positions, from ``damping`` upwards. A damping is what noise of that variance on a would do: the
    one that fits best takes a as it is, and is in the way of a training, which changes a.

    Args:
        a: The variables that the thin layer gets, (k, s).
        b: What the wide one got at the same positions, (L, s).
        kept: The row of b that each variable is.
        weight: The wide layer's, (outputs, L, taps).
        centred: Take the means off both sides, which the shift makes up for.
        damping: The least d.

    Returns:
        The weights (outputs, k, taps), the shift (outputs,) of their output, and how well they fit.
    """
    k, length, total = len(a), len(b), a.shape[1]
    plain = torch.zeros(length, k, dtype=a.dtype, device=a.device)
    plain[kept, torch.arange(k, device=a.device)] = 1.0
    mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    if not centred:
        mean_a, mean_b = torch.zeros_like(mean_a), torch.zeros_like(mean_b)
    a, rest = a - mean_a, b - mean_b
    spread = rest @ rest.T
    rest = rest - plain @ a
    outer = torch.einsum("olt,omt->lm", weight, weight)
    split = max(total - total // 4, 1)
    parts = [(a[:, :split], rest[:, :split]), (a[:, split:], rest[:, split:])]
    fit, held = (_moments(x, r) for x, r in parts)
    # Without a change the error is the plain cut's; nothing that does worse on held-out positions is taken.
    before = float((outer * held.rest).sum())
    found, best = math.inf, before
    allowed = sorted({max(tried, damping) for tried in DAMPINGS})
    for tried, change in changes(fit.gram, fit.cross, allowed):
        left = held.rest - change @ held.cross.T - held.cross @ change.T + change @ held.gram @ change.T
        error = float((outer * left).sum())
        if error < best:
            found, best = tried, error
    c = plain
    if found < math.inf:
        whole = _moments(a, rest)
        ((_, change),) = changes(whole.gram, whole.cross, (found,))
        c = plain + change
    size = float((outer * spread).sum()) / total or 1.0
    repaired = torch.einsum("olt,lk->okt", weight, c)
    shift = weight.sum(2) @ (mean_b - c @ mean_a)[:, 0]
    return repaired, shift, Fit(found, before / size, best / size)


class _Moments(NamedTuple):
    """Mean products of the variables (k, k), of what is missing with them (L, k), and of what is missing."""

    gram: Tensor
    cross: Tensor
    rest: Tensor


def _moments(a: Tensor, rest: Tensor) -> _Moments:
    count = max(a.shape[1], 1)
    return _Moments(a @ a.T / count, rest @ a.T / count, rest @ rest.T / count)


def changes(gram: Tensor, cross: Tensor, dampings: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    """Yield (damping, cross (gram + damping m I)^-1) for each damping, m the mean of gram's diagonal."""
    values, vectors = torch.linalg.eigh(gram)
    mean = float(values.clamp_min(0.0).mean())
    turned = cross @ vectors
    for damping in dampings:
        # Nothing varies: nothing to go by.
        inverse = 1.0 / (values.clamp_min(0.0) + damping * mean) if mean > 0.0 else torch.zeros_like(values)
        yield damping, (turned * inverse) @ vectors.T


def worst(fits: Sequence[Fit]) -> Fit:
    """Pick the fit with the largest error of those of a layer's blocks."""
    return max(fits, key=lambda fit: fit.after or 0.0)
