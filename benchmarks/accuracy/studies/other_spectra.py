"""Weights and spectra to try the paper's rule on instead: folded norms, noise, what is above noise."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.spectra import Spectrum, measure_spectra


def folded_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, each convolution's filters times the scale of the batch norm that is the next
    module defined.
    """
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    for (conv, before), (norm, after) in pairwise(layers):
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            variance = tensors[f"{norm}.running_var"]
            scale = tensors[f"{norm}.weight"] / (variance + after.eps).sqrt()
            tensors[f"{conv}.weight"] = tensors[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
    return tensors


def noise_like(spectrum: Spectrum, *, seed: int) -> Spectrum:
    """The spectrum of Gaussian noise of a layer's shape and total variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(spectrum.n, spectrum.d, generator=generator, dtype=torch.float64)
    (found,) = measure_spectra({"x": x}).values()
    factor = spectrum.trace / found.trace
    return dataclasses.replace(
        spectrum,
        eigenvalues=found.eigenvalues * factor,
        trace=found.trace * factor,
        error=0.0,
        dtype="float64",
    )


def above_noise(spectrum: Spectrum, *, seed: int) -> Spectrum:
    """Each eigenvalue less that of noise whose median eigenvalue is the spectrum's, and not below zero."""
    noise = noise_like(spectrum, seed=seed).eigenvalues
    median = len(noise) // 2
    factor = min(1.0, float(spectrum.eigenvalues[median] / max(noise[median], 1e-300)))
    rest = np.maximum(spectrum.eigenvalues - factor * noise, 0.0)
    rest = np.sort(rest)[::-1].copy()
    rest[0] = max(rest[0], 1e-12)
    return dataclasses.replace(
        spectrum, eigenvalues=rest, trace=float(rest.sum()), error=0.0, dtype="float64"
    )
