"""Mean and variance of what a batch norm reads, slice after slice, against those of everything at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slimfast.pruning.repair.norms import NormMoments


def measured(parts: list[Tensor], masks: list[Tensor | None] | None = None) -> nn.Module:
    found = NormMoments()
    for x, mask in zip(parts, masks or [None] * len(parts), strict=True):
        found.add(x, mask)
    norm = nn.BatchNorm2d(parts[0].shape[1])
    assert found.write(norm)
    return norm


@pytest.mark.parametrize("offset", [0.0, 5.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 9), (6, 5, 7, 4), (6, 5, 3, 2, 4)])
def test_slices_give_what_all_of_it_gives(offset: float, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset).to(dtype)
    norm = measured(list(x.split([1, 3, 2])))
    variance, mean = torch.var_mean(x.double(), dim=[d for d in range(x.dim()) if d != 1])
    assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm.running_var.double(), variance, rtol=2e-3 if offset > 1e3 else 1e-4)


def test_a_channel_that_does_not_vary() -> None:
    x = torch.randn(4, 3, 5, 5)
    x[:, 1] = 2.0
    norm = measured(list(x.split(2)))
    assert norm.running_var[1] == 0.0
    assert norm.running_mean[1] == 2.0


def test_padding_does_not_count() -> None:
    x = torch.randn(3, 4, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
    norm = measured([x[:1], x[1:]], [mask[:1], mask[1:]])
    seen = x.movedim(1, -1)[mask]
    assert torch.allclose(norm.running_mean, seen.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, seen.var(0), rtol=1e-5)


def test_one_position_has_no_variance() -> None:
    found = NormMoments()
    found.add(torch.ones(1, 3, 1, 1), None)
    norm = nn.BatchNorm2d(3)
    assert not found.write(norm)
    assert torch.equal(norm.running_var, torch.ones(3))
