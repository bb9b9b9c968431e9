"""Moments behind a ReLU, against a sample."""

from __future__ import annotations

import torch

from slimfast.pruning.repair.rectified import moments_behind_relu


def test_moments_behind_a_relu_against_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.5, -0.7, 0.0], dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.5], [0.3, 1.0], [-0.6, 0.9]], dtype=torch.float64)
    z = torch.randn(2_000_000, 2, dtype=torch.float64, generator=generator)
    seen = (mean + z @ rows.T).relu()
    found = moments_behind_relu(mean, rows)
    assert torch.allclose(found.mean, seen.mean(0), atol=2e-3)
    # The series stops at its third term.
    assert torch.allclose(found.covariance, seen.T.cov(), atol=2e-2)
    assert torch.allclose(found.covariance.diagonal(), seen.var(0), atol=2e-3)
