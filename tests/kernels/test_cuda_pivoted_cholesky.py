"""The CUDA pivoted Cholesky picks what the reference does, on the emulation and on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases
from torch import Tensor

from slimfast.kernels import ops

SINGLE_DOUBLE = (torch.float32, torch.float64)


def assert_same_picks(mats: list[Tensor], ranks: list[int], device: str) -> None:
    ours = ops.grouped_pivoted_cholesky([mat.to(device) for mat in mats], ranks, backend="cuda")
    expected = ops.grouped_pivoted_cholesky(mats, ranks, backend="reference")
    for mat, got, want in zip(mats, ours, expected, strict=True):
        eps = torch.finfo(mat.dtype).eps
        assert torch.equal(got.order.cpu(), want.order)
        assert got.factor.shape == want.factor.shape
        scale = mat.diagonal().abs().max().item()
        # Both work in float64 and round once to the result's dtype.
        assert torch.allclose(got.factor.cpu(), want.factor, rtol=0, atol=8 * len(mat) * eps * scale**0.5)
        assert torch.allclose(
            got.residual.cpu(), want.residual, rtol=4 * eps, atol=8 * len(mat) * eps * scale
        )


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
@pytest.mark.parametrize("kind", ["wishart", "layer_like", "huge_scale", "tiny_scale", "block_diagonal"])
def test_picks_equal_the_reference(device: str, kind: str, dtype: torch.dtype) -> None:
    mats = [cases.SYMMETRIC[kind](m).to(dtype) for m in (1, 2, 8, 33, 65, 130)]
    assert_same_picks(mats, [max(1, len(mat) // 2) for mat in mats], device)


def test_picks_of_ties_zeros_and_low_rank(device: str) -> None:
    # Powers of two are exact: equal variances stay equal, and the smallest index must win.
    twins = torch.diag(torch.tensor([1.0, 4.0, 4.0, 2.0, 4.0])).double()
    mats = [torch.eye(40), torch.zeros(9, 9), torch.ones(12, 12), twins, torch.eye(600).double()]
    assert_same_picks(mats, [40, 9, 12, 5, 3], device)
    assert_same_picks([torch.eye(5)], [0], device)


def test_picks_with_several_blocks_to_a_matrix(device: str) -> None:
    x = cases.normal(2100, 30)
    mats = [cases.wishart(600).float(), cases.wishart(513), x @ x.T]
    assert_same_picks(mats, [40, 30, 29], device)


def test_picks_beyond_what_is_staged_at_a_time(device: str) -> None:
    # One block-sized spectrum keeps every pick clear of rounding: the diagonal falls by a factor each row.
    n = 300
    lower = torch.eye(n).double() + 1e-3 * cases.normal(n, n).tril(-1)
    diagonal = torch.linspace(2, 1, n).double()
    assert_same_picks([(lower * diagonal) @ (lower * diagonal).T], [n], device)
