"""Covariances to compare with: in more digits, and as a PyTorch user writes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Rows and the members' columns: several chunks of samples, parts that end within a member, one position.
JOINT = [
    (1, (1, 1)),
    (5, (3, 1, 8)),
    (33, (64, 200, 7)),
    (70, (576, 64, 256, 130)),
    (40, (3, 2)),
    (16, (9000, 9, 20000)),
]


def exact_covariance(x: Tensor, by_rows: bool, *, extended: bool | None = None) -> Tensor:
    """(m, m) float64, computed in float64 or in extended precision (the default for float64)."""
    extended = x.dtype == torch.float64 if extended is None else extended
    wide = x.double().numpy().astype(np.longdouble if extended else np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    left = centred if by_rows else centred.T
    return torch.from_numpy((left @ left.T / max(x.shape[1] - 1, 1)).astype(np.float64))


def plain_covariance(x: Tensor, by_rows: bool) -> Tensor:
    """What a PyTorch user writes, in x's own dtype."""
    centred = x - x.mean(1, keepdim=True)
    left = centred if by_rows else centred.T
    return left @ left.T / max(x.shape[1] - 1, 1)
