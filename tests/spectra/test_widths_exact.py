"""k(tau) of every layer of the real weights is the integer that float64 LAPACK gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import DATA

from slimfast.spectra import measure_spectra
from slimfast.storage.weights import read_tensors

WEIGHTS = DATA / "weights"
FILES = sorted(f for f in WEIGHTS.glob("*") if f.suffix in (".pth", ".th"))
TAUS = tuple((i + 0.5) / 200 for i in range(200))

needs_weights = pytest.mark.skipif(not FILES, reason=f"no weights in {WEIGHTS} (set SLIMFAST_DATA)")


def lapack_ratio(weight: torch.Tensor) -> np.ndarray:
    """F(1), ... of a weight by numpy in float64: the definition, on the smaller side."""
    x = weight.flatten(1).double().numpy()
    x = x - x.mean(1, keepdims=True)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    return np.cumsum(values) / values.sum()


@needs_weights
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_widths_of_every_layer_at_200_taus_are_those_of_float64_lapack(file: Path) -> None:
    tensors = {k: t for k, t in read_tensors(file).items() if t.is_floating_point() and t.ndim >= 2}
    spectra = measure_spectra(file, taus=TAUS)
    assert spectra.keys() == tensors.keys()
    for name, weight in tensors.items():
        expected = np.searchsorted(lapack_ratio(weight), TAUS) + 1
        found = [spectra[name].width(explained_variance=tau) for tau in TAUS]
        assert found == expected.tolist(), name
        assert all(spectra[name].certified(explained_variance=tau) for tau in TAUS), name


@needs_weights
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_float32_errs_by_less_than_a_quarter_of_the_bound(file: Path) -> None:
    """The bound's constant is far above what these layers show, so that it may be trusted on others."""
    spectra = measure_spectra(file, dtype=torch.float32)
    tensors = read_tensors(file)
    for name, spectrum in spectra.items():
        worst = np.abs(spectrum.explained_variance_ratio() - lapack_ratio(tensors[name])).max()
        assert worst <= spectrum.error / 4, name
