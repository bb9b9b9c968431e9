"""Streaming moments on a device: a batch's covariance by the backend's own kernels, and the join in float64.

Activations are viewed as (variables, positions) where their strides allow it. Those of convolutions, and
those of which a mask takes some, are copied, one layer's batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slimfast.kernels.results import Moments

Covariance = Callable[[list[Tensor], list[bool], list[torch.dtype]], tuple[list[Tensor], Tensor]]


def moments_by_covariance(
    covariance: Covariance,
    xs: list[Tensor],
    masks: list[Tensor | None],
    into: list[Moments],
    dtypes: list[torch.dtype],
) -> None:
    """Add the moments of each x (variables, positions ...), by a backend's ``covariance``."""
    for x, mask, sums, dtype in zip(xs, masks, into, dtypes, strict=True):
        columns = x.flatten(1) if mask is None else x.flatten(1)[:, mask.flatten()]
        count = columns.shape[1]
        if count == 0:
            continue
        (matrix,), _ = covariance([columns], [True], [dtype])
        mean = columns.sum(1, dtype=torch.float64) / count
        sums.merge(Moments(count, mean, matrix.double() * max(count - 1, 1)))
