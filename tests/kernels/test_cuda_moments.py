"""Streaming moments through the CUDA covariance kernels, in the emulation and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases
from support.moments_cases import columns_of, exact_moments, plain_squares

from slimfast.errors import BackendUnavailable
from slimfast.kernels import dispatch, grouped_cross_covariance, grouped_moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dim"), [((1, 1), 0), ((33, 70), 1), ((3, 20, 24), -1), ((4, 10, 6, 7), 1)]
)
def test_batches_and_masks(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str) -> None:
    moments, seen, allowed = None, [], 0.0
    mean = 3e3 if dtype == torch.float32 else 3.0
    for i in range(3):
        x = (cases.normal(*shape, i + 1)[..., i] * (i + 1) + mean).to(dtype)
        positions = x.movedim(dim, 0).shape[1:]
        mask = torch.rand(positions, generator=cases.generator(*shape)) < 0.7 if i == 1 else None
        if i == 1:
            mask.view(-1)[0] = True
        seen.append(columns_of(x, dim, mask))
        on = None if mask is None else mask.to(device)
        moments = grouped_moments([x.to(device)], dims=dim, masks=[on], into=moments, backend="cuda")
        # Each batch is held to PyTorch's own error on it, and what they may be off adds up.
        own = exact_moments(seen[-1]).squares
        unit = torch.finfo(dtype).eps * own.abs().max().item()
        allowed += 2 * max((plain_squares(seen[-1]).double() - own).abs().max().item(), unit)
    assert moments is not None
    exact = exact_moments(torch.cat(seen, 1))
    assert moments[0].count == exact.count
    # Joining loses roundings of the mean.
    allowed += torch.finfo(torch.float64).eps * mean * exact.squares.abs().max().item()
    assert (moments[0].squares.cpu() - exact.squares).abs().max() <= allowed
    assert torch.allclose(moments[0].mean.cpu(), exact.mean, rtol=1e-15)


def test_nothing_counts(device: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(device)
    none = torch.zeros(9, dtype=torch.bool, device=device)
    (found,) = grouped_moments([x], masks=[none], backend="cuda")
    assert found.count == 0
    assert not found.squares.any()


def test_a_value_that_is_not_finite_names_its_layer(device: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(device)
    x[2, 5] = float("inf")
    with pytest.raises(ValueError, match=r"got inf of variable 2 at position \(5,\), 1 in all \(fc\)"):
        grouped_moments([x], names=["fc"], backend="cuda")


def test_ops_without_a_kernel_say_so(device: str) -> None:
    x = cases.normal(4, 9).to(device)
    assert dispatch.why_not("cross_covariance", [x], "cuda") == [
        "there is no CUDA kernel for cross_covariance"
    ]
    with pytest.raises(
        BackendUnavailable, match="cross_covariance: backend 'cuda' cannot run: there is no CUDA"
    ):
        grouped_cross_covariance([x], [x], backend="cuda")
