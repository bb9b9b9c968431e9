"""Choose units of layers with far more units than positions, without the matrix of all pairs of units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import FloatArray, IntArray


def pivoted_rows(rows: Sequence[Tensor], rank: int) -> tuple[IntArray, FloatArray]:
    """Choose rows greedily, as pivoted Cholesky of their covariance does, in memory for the rows alone.

    The covariance of n rows over d positions has rank d at most, and what is left of a row after those chosen
    before is its part orthogonal to them: d steps over (n, d) numbers, where the covariance has (n, n).

    Args:
        rows: The members (n, d_j), each centred on its own, which count side by side.
        rank: How many rows are chosen at most.

    Returns:
        The rows in the order in which they were chosen, and the variance of every row.
    """
    x = torch.cat([(row.double() - row.double().mean(1, keepdim=True)) for row in rows], dim=1)
    x /= max(x.shape[1] - 1, 1) ** 0.5
    variance = x.square().sum(1)
    left = variance.clone()
    floor = len(x) * torch.finfo(torch.float64).eps * float(left.max())
    chosen = x.new_zeros(min(rank, x.shape[1]), x.shape[1])
    order: list[int] = []
    while len(order) < len(chosen):
        pick = int(left.argmax())
        if float(left[pick]) <= floor:
            break
        direction, before = x[pick].clone(), chosen[: len(order)]
        # Twice, for the first leaves rounding of the size of the row along what was chosen before.
        for _ in range(2):
            direction -= before.T @ (before @ direction)
        direction /= direction.norm()
        left = (left - (x @ direction).square()).clamp_min_(0.0)
        chosen[len(order)] = direction
        order.append(pick)
        left[order] = 0.0
    return np.array(order, dtype=np.int64), variance.cpu().numpy()
