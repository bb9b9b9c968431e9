"""Widths of spectra: of hand-made ones, and certified, in float64 where float32 leaves them open."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.channel_graphs import chain, chain_weights
from support.spectra_cases import lapack, spectrum
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.spectra import measure_again, measure_spectra

# One layer


def test_widths_of_a_hand_made_spectrum() -> None:
    s = spectrum([4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(s.explained_variance_ratio(), [0.4, 0.7, 0.9, 1.0])
    taus = [0.01, 0.4, 0.41, 0.7, 0.71, 0.89, 0.91, 1.0]
    assert [s.width(explained_variance=tau) for tau in taus] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [s.ratio(width) for width in range(5)] == pytest.approx([0.0, 0.4, 0.7, 0.9, 1.0])


def test_ratio_is_one_beyond_the_smaller_side() -> None:
    s = spectrum([1.0, 1.0], n=5)
    assert s.ratio(5) == 1.0
    for width in (-1, 6):
        with pytest.raises(ValueError, match=rf"expected a width in 0..5, got {width} \(layer\)"):
            s.ratio(width)


def test_everything_but_rounding_is_the_numerical_rank() -> None:
    s = spectrum([5.0, 2.0, 1e-17, 0.0])
    assert s.rank() == 2
    assert s.width(explained_variance=1.0) == 2


def test_a_layer_without_variance_needs_one_unit() -> None:
    s = spectrum([0.0, 0.0, 0.0])
    assert s.width(explained_variance=1.0) == 1
    assert s.effective_rank() == 1.0
    assert s.explained_variance_ratio().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_tau_outside_its_range(tau: float) -> None:
    for question in (spectrum([1.0]).width, spectrum([1.0]).certified):
        with pytest.raises(ValueError, match=r"expected explained_variance in \(0, 1\], got .* \(layer\)"):
            question(explained_variance=tau)
    with pytest.raises(ValueError, match="explained_variance"):
        measure_spectra({"a": torch.eye(3)}, taus=(tau,))


def test_effective_rank() -> None:
    assert spectrum([2.0] * 7).effective_rank() == pytest.approx(7.0)
    assert spectrum([3.0, 0.0]).effective_rank() == pytest.approx(1.0)
    # entropy of (1/2, 1/4, 1/4) is 1.5 ln 2
    assert spectrum([2.0, 1.0, 1.0]).effective_rank() == pytest.approx(2**1.5)


def test_certified_says_whether_the_error_can_change_the_width() -> None:
    s = spectrum([4.0, 3.0, 2.0, 1.0], error=1e-3)
    assert s.certified(explained_variance=0.8)
    assert s.certified(explained_variance=0.7 + 2e-3)
    assert not s.certified(explained_variance=0.7 + 5e-4)
    assert not s.certified(explained_variance=0.7 - 5e-4)
    assert s.certified(explained_variance=1.0)
    assert not spectrum([4.0, 3.0, 3e-6], error=1e-3).certified(explained_variance=1.0)
    assert dataclasses.replace(s, error=0.0).certified(explained_variance=0.7)
    assert s.width_range(explained_variance=0.7) == (2, 3)


descending = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.0, 1e3)).map(
    lambda a: np.sort(a)[::-1]
)
shares = st.floats(0.0, 1.0, exclude_min=True)


@given(descending, shares)
def test_width_is_the_smallest_that_explains_enough(values: np.ndarray, tau: float) -> None:
    s = spectrum(values.tolist())
    width = s.width(explained_variance=tau)
    enough = min(tau, s.ratio(s.rank()))
    assert s.ratio(width) >= enough
    assert width == 1 or s.ratio(width - 1) < enough


@given(descending, shares, st.floats(0.0, 0.3), st.floats(-1.0, 1.0))
def test_certified_widths_survive_any_shift_within_the_error(
    values: np.ndarray, tau: float, error: float, shift: float
) -> None:
    s = spectrum(values.tolist(), error=error)
    if s.certified(explained_variance=tau) and error > 0 and tau - error * shift <= 1.0:
        first = np.searchsorted(s.explained_variance_ratio(), tau - 0.999 * error * shift) + 1
        assert min(first, len(values)) == s.width_range(explained_variance=tau)[0]


# Certification


def near_a_tie(seed: int) -> tuple[Tensor, float]:
    """A layer and a tau that float32 cannot tell from its F(9), but float64 can: 1e-10 above it."""
    weight = torch.randn(24, 200, generator=torch.Generator().manual_seed(seed))
    exact = lapack(weight.double().numpy())
    return weight, float(exact[:9].sum() / exact.sum()) + 1e-10


def test_what_float32_leaves_open_is_measured_in_float64() -> None:
    cases = {f"{seed}": near_a_tie(seed) for seed in range(20)}
    taus = [tau for _, tau in cases.values()]
    found = measure_spectra({name: weight for name, (weight, _) in cases.items()}, taus=taus)
    single = measure_spectra({name: weight for name, (weight, _) in cases.items()})
    wrong = 0
    for name, (_, tau) in cases.items():
        assert found[name].dtype == "float64"
        assert found[name].width(explained_variance=tau) == 10
        assert not single[name].certified(explained_variance=tau)
        wrong += single[name].width(explained_variance=tau) != 10
    # Without the second measurement about half of these would be wrong.
    assert wrong > 0


def test_a_layer_that_float32_settles_is_not_measured_again() -> None:
    (s,) = measure_spectra({"a": near_a_tie(0)[0]}, taus=(0.5,)).values()
    assert s.dtype == "float32"


def test_ties_are_what_lapack_in_float64_says() -> None:
    weight = torch.randn(12, 40)
    exact = lapack(weight.double().numpy())
    (reference,) = measure_spectra({"a": weight}, dtype=torch.float64, backend="reference").values()
    tau = float(reference.explained_variance_ratio()[4])
    (s,) = measure_spectra({"a": weight}, taus=(tau,)).values()
    assert (s.dtype, s.error) == ("float64", 0.0)
    assert s.width(explained_variance=tau) == 5
    np.testing.assert_allclose(s.eigenvalues, exact, rtol=1e-10)


def test_measure_again_goes_one_step_up_each_time() -> None:
    weights, graph = chain_weights([6, 5, 4], inputs=9), chain([6, 5, 4], inputs=9)
    first = measure_spectra(weights, graph, scaling="unit")
    second = measure_again(weights, first, ["1"], graph)
    assert list(second) == ["1"]
    assert (second["1"].dtype, second["1"].error, second["1"].scaling) == ("float64", 1e-12, "unit")
    third = measure_again(weights, second, ["1"], graph)
    assert (third["1"].dtype, third["1"].error) == ("float64", 0.0)
    np.testing.assert_allclose(third["1"].eigenvalues, first["1"].eigenvalues, rtol=1e-5, atol=1e-6)
    with pytest.raises(SlimfastError, match=r"no layer '11' \(did you mean '1'\?\)"):
        measure_again(weights, first, ["11"], graph)
