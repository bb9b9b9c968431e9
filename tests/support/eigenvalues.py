"""Eigenvalues to compare with, and the accuracy rule over a group of matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def torch_and_float64(mats: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """PyTorch's eigenvalues in the matrices' dtype, and those to compare with.

    For float64 the latter are PyTorch's too; its own error shows as the difference that reordering rows and
    columns makes, which changes no eigenvalue.
    """
    same = [torch.linalg.eigvalsh(m if m.dtype == torch.float32 else m.flip(0, 1)) for m in mats]
    return same, [torch.linalg.eigvalsh(m.double()) for m in mats]


def relative_errors(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Largest error of each matrix relative to its largest eigenvalue."""
    norms = [max(e.abs().max().item(), 1e-300) for e in exact]
    return [(v.double() - e).abs().max().item() / n for v, e, n in zip(values, exact, norms, strict=True)]


def assert_group_as_accurate(
    ours: list[Tensor], same: list[Tensor], exact: list[Tensor], *, sums: bool
) -> None:
    """Over a group, our largest relative error is at most twice PyTorch's, and so is that of sums.

    A single matrix can be solved exactly by luck; over many kinds of them the largest error counts.
    """
    for values, torchs in zip(ours, same, strict=True):
        assert values.shape == torchs.shape
        assert values.dtype == torchs.dtype
        assert bool((values[1:] >= values[:-1]).all())
    allowed = 2 * max(*relative_errors(same, exact), torch.finfo(ours[0].dtype).eps)
    worst = max(relative_errors(ours, exact))
    assert worst <= allowed, f"error {worst:.2e}, allowed {allowed:.2e}"
    if sums:
        cumulated = [[v.double().cumsum(0) for v in values] for values in (ours, same, exact)]
        unit = torch.finfo(ours[0].dtype).eps
        allowed = 2 * max(*relative_errors(cumulated[1], cumulated[2]), unit)
        worst = max(relative_errors(cumulated[0], cumulated[2]))
        assert worst <= allowed, f"error of sums {worst:.2e}, allowed {allowed:.2e}"
