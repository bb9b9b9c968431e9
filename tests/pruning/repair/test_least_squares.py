"""The least squares of one layer: against NumPy and ridge regression, and no change without evidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.repair_cases import solved
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.pruning.repair import least_squares


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


class _Largest(TorchDispatchMode):
    """Notes the most numbers that an operation made at once, but in tensors of the sizes it is given."""

    def __init__(self, but: set[tuple[int, ...]]) -> None:
        super().__init__()
        self._but, self.numbers = but, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and tuple(made.shape) not in self._but:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("taps", [1, 3])
def test_a_long_weight_is_computed_with_a_few_rows_at_a_time(
    taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    kept, outputs = torch.arange(6), 4000
    b = torch.randn(8, 400, generator=generator)
    a = b[:6] + 0.1 * torch.randn(6, 400, generator=generator)
    weight = torch.randn(outputs, 8, taps, generator=generator)
    whole = solved(a, b, kept, weight, centred=True)
    monkeypatch.setattr(least_squares, "_AT_ONCE", 100 * 8 * taps)
    # The weight itself is there already; the thin one, and its shifts, are what is asked for.
    views = {(outputs, 8, taps), (outputs, 6, taps), (outputs,)}
    with _Largest(views) as largest:
        parted = solved(a, b, kept, weight, centred=True)
    assert largest.numbers <= max(100 * 8 * taps, a.numel(), b.numel())
    assert torch.allclose(parted.weight, whole.weight, rtol=1e-5, atol=1e-6)
    assert torch.allclose(parted.shift, whole.shift)
    assert parted.fit.damping == whole.fit.damping
    assert parted.fit.after == pytest.approx(whole.fit.after)


@given(st.integers(6, 40), st.integers(4, 60), st.integers(1, 50), st.booleans(), st.integers(0, 1 << 30))
def test_few_positions_give_what_their_moments_give(
    length: int, positions: int, outputs: int, centred: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.arange(0, length, 2)
    b = torch.randn(length, positions, generator=generator, dtype=torch.float64) + 0.5
    a = b[kept] + 0.3 * torch.randn(len(kept), positions, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, length, 1, generator=generator, dtype=torch.float64)
    found = solved(a, b, kept, weight, centred=centred, damping=1e-3)
    # As many positions as there might be: none are kept as they are.
    expected = solved(a, b, kept, weight, centred=centred, damping=1e-3, counts=(1 << 30, 1 << 30))
    assert found.fit.damping == expected.fit.damping
    assert found.fit.before == pytest.approx(expected.fit.before)
    assert found.fit.after == pytest.approx(expected.fit.after, abs=1e-9)
    assert torch.allclose(found.weight, expected.weight, atol=1e-8)
    assert torch.allclose(found.shift, expected.shift, atol=1e-8)


@pytest.mark.parametrize("positions", [120, 900])
@pytest.mark.parametrize("outputs", [260, 2000])
def test_dampings_compared_in_some_directions_are_those_of_all_of_them(
    outputs: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(outputs + positions)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length, kept = 300, torch.arange(0, 300, 2)
    b = normal(length, 40) @ normal(40, positions) + 2.0 * normal(length, positions)
    # What the thin layer gets is noisy: neither the least nor the most damping is best.
    a = b[kept] + 0.5 * normal(len(kept), positions)
    weight = normal(outputs, length, 1) / length**0.5
    found, _, fit = solved(a, b, kept, weight, centred=True)
    with monkeypatch.context() as patch:
        patch.setattr(least_squares, "DIRECTIONS", 1 << 20)
        expected, _, exact = solved(a, b, kept, weight, centred=True)
    assert fit.damping == exact.damping
    assert 1e-8 < fit.damping < 10.0
    assert fit.before == pytest.approx(exact.before, rel=1e-9)
    # An expectation from 128 directions of 260 or 300, in shares of what is missing in them.
    assert fit.after == pytest.approx(exact.after, rel=0.1)
    assert fit.after != exact.after
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
