"""Spectra made by hand, and the definition in numpy's float64 LAPACK, for tests of spectra."""

from __future__ import annotations

import numpy as np

from slimfast.spectra import Spectrum


def spectrum(values: list[float], *, n: int | None = None, error: float = 0.0) -> Spectrum:
    eigenvalues = np.array(values, dtype=np.float64)
    dtype = "float32" if error > 1e-9 else "float64"
    return Spectrum(
        "layer", n or len(values), len(values), eigenvalues, float(eigenvalues.sum()), error, dtype
    )


def lapack(*members: np.ndarray, scaling: str = "raw", member_scaling: bool = False) -> np.ndarray:
    """Descending eigenvalues of the joint covariance, written as the definition reads."""
    d = sum(x.shape[1] for x in members)
    centred = [x - x.mean(1, keepdims=True) for x in members]
    if member_scaling:
        centred = [x / (np.sqrt((x**2).sum() / (d - 1)) or 1.0) for x in centred]
    x = np.concatenate(centred, axis=1)
    s = x @ x.T / (d - 1)
    if scaling == "unit":
        deviation = np.sqrt(np.diag(s))
        s = s / deviation / deviation[:, None]
    return np.maximum(np.linalg.eigvalsh(s)[::-1], 0.0)[: min(s.shape[0], d)]
