"""A chain of linear layers and spectra made up for its groups, for tests of plans."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from slimfast.graph.channel_graph import ChannelGraph
from slimfast.spectra import Spectrum
from support.channel_graphs import chain

SIZES = [12, 10, 8, 4]


def spectrum(name: str, values: Any, *, d: int, error: float = 0.0) -> Spectrum:
    eigenvalues = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    dtype = "float32" if error > 1e-9 else "float64"
    return Spectrum(name, len(eigenvalues), d, eigenvalues, float(eigenvalues.sum()), error, dtype)


def spectra_of(sizes: list[int], *, inputs: int = 30, seed: int = 0) -> dict[str, Spectrum]:
    """Spectra of full rank for the groups of ``chain(sizes, inputs=inputs)``."""
    generator = np.random.default_rng(seed)
    before = [inputs, *sizes]
    return {
        f"{i}": dataclasses.replace(
            spectrum(f"{i}", generator.exponential(size=min(n, d)) ** 2, d=d), n=n, d=d
        )
        for i, (n, d) in enumerate(zip(sizes[:-1], before, strict=False))
    }


@pytest.fixture
def graph() -> ChannelGraph:
    return chain(SIZES, inputs=30)


@pytest.fixture
def spectra() -> dict[str, Spectrum]:
    return spectra_of(SIZES)
