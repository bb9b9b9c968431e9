"""Units of layers with far more units than positions are chosen without the matrix of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.kernels.ops import grouped_covariance, grouped_pivoted_cholesky
from slimfast.pruning.wide_units import pivoted_rows


@pytest.mark.parametrize("shapes", [[(40, 6)], [(40, 6), (40, 9)], [(25, 24)], [(30, 1)]])
@pytest.mark.parametrize("rank", [3, 30])
def test_the_order_is_that_of_pivoted_cholesky(shapes, rank):
    torch.manual_seed(len(shapes) + rank)
    rows = [torch.randn(shape) for shape in shapes]
    rank = min(rank, shapes[0][0])
    (matrix,) = grouped_covariance([rows], side="rows", dtype=torch.float64, backend="reference").matrices
    (pick,) = grouped_pivoted_cholesky([matrix], [rank], backend="reference")
    order, variance = pivoted_rows(rows, rank)
    assert order.tolist() == pick.order.tolist()
    assert np.allclose(variance, matrix.diagonal().numpy(), rtol=1e-13, atol=0)


def test_rows_that_are_alike_use_up_the_rank():
    rows = torch.randn(2, 7)[torch.arange(50) % 2]
    order, _ = pivoted_rows([rows], 10)
    assert sorted(order.tolist()) == [0, 1]


def test_a_wide_layer_is_cut_in_little_memory():
    """(30000, 30000) in float64 would take 7.2 GB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 30000), nn.ReLU(), nn.Linear(30000, 4)).eval()
    plan = slimfast.plan(model, torch.randn(1, 8), params=0.5)
    chosen = slimfast.select(model, plan, method="pivoted_cholesky")
    keep = np.array(chosen.groups[0].keep)
    order, _ = pivoted_rows([model[0].weight.detach()], 8)
    assert set(order.tolist()) <= set(keep.tolist())
    assert len(keep) == plan.groups[0].width
    model[0].weight.data[5, 3] = float("inf")
    with pytest.raises(SlimfastError, match=r"select: expected finite weights.*0\.weight"):
        slimfast.select(model, plan, method="pivoted_cholesky")
