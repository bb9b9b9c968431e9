"""The least squares of one layer: against NumPy and ridge regression, and no change without evidence."""

from __future__ import annotations

import torch
from support.repair_cases import solved


def test_least_squares_against_numpy() -> None:
    torch.manual_seed(0)
    a, true = torch.randn(3, 400, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    b = true @ a + 2.0
    weight = torch.randn(4, 5, 1, dtype=torch.float64)
    repaired_weight, shift, fit = solved(a, b, torch.tensor([0, 2, 4]), weight, centred=True)
    assert torch.allclose(repaired_weight[..., 0], weight[..., 0] @ true, atol=1e-5)
    assert torch.allclose(shift, weight[..., 0].sum(1) * 2.0, atol=1e-5)
    assert fit.damping == 1e-8
    assert fit.after is not None
    assert fit.after < 1e-10


def test_a_damping_is_what_noise_on_the_variables_would_do() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 200, dtype=torch.float64, generator=generator)
    a = a * torch.tensor([[4.0], [1.0], [0.1]], dtype=torch.float64)
    true = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    weight, kept = torch.eye(5, dtype=torch.float64)[..., None], torch.tensor([0, 2, 4])
    plain = torch.eye(5, dtype=torch.float64)[:, kept]
    b = true @ a
    new, _, fit = solved(a, b, kept, weight, centred=False, damping=3.0)
    assert fit.damping == 3.0
    # Ridge regression is least squares of variables with noise of variance d m, m being their mean variance.
    gram = a @ a.T / 200
    noisy = gram + 3.0 * gram.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    expected = plain + (true - plain) @ gram @ torch.linalg.inv(noisy)
    assert torch.allclose(new[..., 0], expected, atol=1e-10)


def test_no_evidence_no_change() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 40, dtype=torch.float64, generator=generator)
    # What was removed has nothing to do with what stays: with so few positions any fit does harm.
    b = torch.cat([a, torch.randn(30, 40, dtype=torch.float64, generator=generator)])
    weight = torch.ones(1, 33, 1, dtype=torch.float64)
    new, shift, fit = solved(a, b, torch.arange(3), weight, centred=False)
    if fit.damping == float("inf"):
        assert torch.equal(new, torch.ones(1, 3, 1, dtype=torch.float64))
    assert fit.after is not None
    assert fit.before is not None
    assert fit.after <= fit.before
    assert torch.equal(shift, torch.zeros(1, dtype=torch.float64))
    dead, _, fit = solved(torch.zeros_like(a), b, torch.arange(3), weight, centred=True)
    assert torch.equal(dead, torch.ones(1, 3, 1, dtype=torch.float64))
    assert fit.damping == float("inf")
