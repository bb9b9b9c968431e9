"""How far apart two outputs are, and how far rounding can bring them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.graph.recording.inputs import tensors_in

# Rounding errors of L operations with inner products of length n, taken as independent, add up to about
# sqrt(L n) u of the output (Higham & Mary, SIAM J. Sci. Comput. 41, 2019); networks amplify them somewhat.
_SLACK = 64.0


def difference(wide: Any, thin: Any) -> float:
    """Measure the largest difference of a floating output, relative to its size; inf where the outputs are of
    another form.
    """
    pairs = list(zip(tensors_in(wide), tensors_in(thin), strict=False))
    if len(list(tensors_in(wide))) != len(list(tensors_in(thin))) or not pairs:
        return math.inf
    return max(relative_difference(a, b) for a, b in pairs)


def is_zero(output: Any) -> bool:
    """Say whether all of an output is 0."""
    return not any(bool(tensor.any()) for tensor in tensors_in(output))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Measure the largest difference as a share of the first tensor's size; inf for other shapes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return math.inf
    a, b = a[finite].double(), b[finite].double()
    size = float(a.abs().max()) if a.numel() else 0.0
    error = float((a - b).abs().max()) if a.numel() else 0.0
    return error / size if size > 0.0 else error


def rounding(model: nn.Module, dtype: torch.dtype, operations: int) -> float:
    """Estimate the relative difference that rounding explains in an output after so many operations."""
    positions = max((t.numel() // max(t.shape[0], 1) for t in model.parameters() if t.ndim > 1), default=1)
    return _SLACK * torch.finfo(dtype).eps / 2 * math.sqrt(max(operations, 1) * max(positions, 1))
