"""What counts in a loss or a score: not padding, not ignored labels, and none of it where nothing is left."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

IGNORED = -100
"""What stands in targets at a place that does not count, as in PyTorch's cross entropy."""


def mean_counted(values: Tensor, counted: Tensor | None) -> Tensor:
    """Take the mean of the values where ``counted`` is true; 0 where it is nowhere, None counts all.

    Without waiting for a GPU, and with the bits of ``values.mean()`` where everything counts.
    """
    if counted is None:
        return values.mean()
    number = counted.sum().clamp(min=1).to(values.dtype)
    return torch.where(counted, values, 0).mean() * (counted.numel() / number)


def nothing(x: Tensor) -> Tensor:
    """Make a 0 with a gradient of zeros, whatever stands in ``x``."""
    return x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0).sum()


def next_position(x: Tensor, last: int | bool) -> Tensor:
    """Put each position's successor in its place in (N, L, ...), and ``last`` at the end."""
    return torch.cat([x[:, 1:], torch.full_like(x[:, :1], last)], dim=1)


def is_label(targets: Tensor, ignore_index: int) -> Tensor:
    """Find where targets count: neither ``ignore_index`` nor negative, or not NaN where they are floating."""
    if targets.is_floating_point():
        return ~targets.isnan()
    if targets.dtype == torch.bool:
        return torch.ones_like(targets)
    # Of eight bits -100 would be 156.
    targets = targets.long()
    return (targets != ignore_index) & (targets >= 0)


def counted_in(feature: Tensor, masks: Iterable[Tensor]) -> Tensor | None:
    """Find which positions of a feature (N, C, ...) count, as (N, ...); None for all.

    A mask of the feature's positions is taken as it is; of one of other positions, as a label map's, a sample
    counts where any of its positions does.
    """
    shape = (len(feature), *feature.shape[2:])
    counted = torch.ones(shape, dtype=torch.bool, device=feature.device)
    for mask in masks:
        if mask.shape == shape:
            counted = counted & mask
        elif len(mask) == len(feature):
            counted = counted & mask.reshape(len(mask), -1).any(1).view(-1, *[1] * (len(shape) - 1))
    return None if bool(counted.all()) else counted
