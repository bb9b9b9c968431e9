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
    return max(_relative(a, b) for a, b in pairs)


def rows_in_common(wide: Any, thin: Any, tolerance: float) -> tuple[float, int, int]:
    """Compare outputs whose length and order values decide, as sets of rows.

    Returns the largest difference of the rows that are in both, how many are in one only, and how many there
    are; nothing is in common where the outputs are of another form.
    """
    pairs = list(zip(tensors_in(wide), tensors_in(thin), strict=False))
    if len(list(tensors_in(wide))) != len(list(tensors_in(thin))):
        return math.inf, 1, 1
    found = [_common_rows(a, b, tolerance) for a, b in pairs]
    return max(e for e, _, _ in found), sum(n for _, n, _ in found), sum(n for _, _, n in found)


def _common_rows(a: Tensor, b: Tensor, tolerance: float) -> tuple[float, int, int]:
    error = _relative(a, b)
    if error <= tolerance:
        return error, 0, max(len(a), len(b)) if a.dim() else 1
    if a.dim() == 0 or a.shape[1:] != b.shape[1:] or a.dtype != b.dtype or a.is_complex():
        return math.inf, 1, 1
    few, many = sorted(
        (x.double().flatten(1) if x.dim() > 1 else x.double()[:, None] for x in (a, b)), key=len
    )
    size = max(float(many.abs().max()), 1e-300) if many.numel() else 1.0
    left, worst, lost = torch.ones(len(many), dtype=torch.bool, device=many.device), 0.0, 0
    for row in few:
        apart = (many - row).abs().amax(1) / size
        apart[~left] = math.inf
        at = int(apart.argmin()) if len(apart) else 0
        if len(apart) and float(apart[at]) <= tolerance:
            worst, left[at] = max(worst, float(apart[at])), False
        else:
            lost += 1
    return worst, lost + int(left.sum()), len(many)


def is_zero(output: Any) -> bool:
    """Say whether all of an output is 0."""
    return not any(bool(tensor.any()) for tensor in tensors_in(output))


def _relative(a: Tensor, b: Tensor) -> float:
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
