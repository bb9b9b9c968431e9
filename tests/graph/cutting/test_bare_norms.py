"""Norms without tensors, whose number of channels follows what they norm."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import slimfast


def thin_of(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return slimfast.slim(model.eval(), x, params=0.5)


NORMS = [lambda n: nn.InstanceNorm2d(n), lambda n: nn.BatchNorm2d(n, affine=False, track_running_stats=False),
         lambda n: nn.GroupNorm(n, n, affine=False), lambda n: nn.BatchNorm2d(n, affine=False)]  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_norms_without_parameters_follow_what_they_norm(norm, batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), nn.Conv2d(16, 5, 3)).eval()
    x = torch.randn(batch, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thin = thin_of(model, x)
        thin(x)
    held = thin[1].num_channels if isinstance(thin[1], nn.GroupNorm) else thin[1].num_features
    assert held == thin[0].out_channels < 16


def test_a_layer_norm_without_parameters_follows_what_it_norms():
    model = nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3)
    ).eval()
    thin = thin_of(model, torch.randn(2, 6))
    assert tuple(thin[1].normalized_shape) == (thin[0].out_features,)
