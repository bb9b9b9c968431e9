"""Spectra measured from weights, in float32 where that settles the widths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from slimfast.errors import SlimfastError
from slimfast.graph.groups import ChannelGraph
from slimfast.kernels.dispatch import backend_module
from slimfast.spectra.eigenvalues import Options, Progress, Scaling, measure_layers
from slimfast.spectra.spectrum import Dtype, FloatArray, Spectrum, check_tau
from slimfast.spectra.unit_matrices import Layer, layers_of
from slimfast.weights import Source, Weights, did_you_mean, open_weights

# float32 measurements: F is within FLOAT32_ERROR u (sqrt(d / 128) + sqrt(m)) |S|_F / trace of float64
# LAPACK's. Over 249 layers of six networks the largest error was 1.2 times the rest of that product, over
# synthetic matrices (graded, of rank 3, far from zero mean) 2.4 times.
FLOAT32_ERROR = 16.0
# float64 measurements by other means than LAPACK's.
FLOAT64_ERROR = 1e-12


def measure_spectra(
    source: Source,
    graph: ChannelGraph | None = None,
    *,
    dtype: torch.dtype | None = None,
    taus: Sequence[float] | None = None,
    scaling: Scaling = "raw",
    member_scaling: bool = False,
    backend: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Spectrum]:
    """The spectrum of every channel group that has weights of its own, or without a graph of every weight
    matrix.

    ``source`` is a module, a mapping of names to tensors, or the path of a file (see
    :func:`slimfast.weights.open_weights`). The weights of a group's producers form its units' rows, each
    member centred on its own, and S = sum of Xc Xc^T / (d - 1) over them. Without a graph every floating
    tensor of two or more dims is a layer, and dim 0 its units.

    float32 (float64 for float64 weights) unless ``dtype`` says otherwise. With ``taus``, the layers of which
    float32 does not settle the width at each of them are measured again, in float64; where that comes within
    1e-12 of a tau, by LAPACK in float64, which defines the width. ``scaling="unit"`` gives every unit unit
    variance, and ``member_scaling`` every member of a group the same total variance. ``progress`` is called
    with the number of layers done and of all.

    Raises :class:`SlimfastError` naming the layer for weights that are missing, empty, of another shape than
    the graph's, or not finite.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"measure_spectra: expected dtype float32 or float64, got {dtype}")
    if scaling not in ("raw", "unit"):
        raise ValueError(f"measure_spectra: expected scaling 'raw' or 'unit', got {scaling!r}")
    if backend != "auto":
        backend_module(backend)
    for tau in taus or ():
        check_tau("measure_spectra", tau)
    weights = open_weights(source)
    layers = layers_of(source, weights, graph)
    options = Options(dtype=dtype, scaling=scaling, member_scaling=member_scaling, backend=backend)
    spectra = _measure(layers, weights, options, progress)
    unsettled = _unsettled(spectra.values(), taus or ())
    while unsettled:
        spectra |= _again(layers, weights, spectra, unsettled, backend)
        unsettled = _unsettled((spectra[name] for name in unsettled), taus or ())
    return {layer.name: spectra[layer.name] for layer in layers}


def measure_again(
    source: Source,
    spectra: Mapping[str, Spectrum],
    names: Iterable[str],
    graph: ChannelGraph | None = None,
    *,
    backend: str = "auto",
) -> dict[str, Spectrum]:
    """The named spectra, each measured one step more exactly than it was, under its own scaling.

    The steps: float32; float64; float64 by LAPACK on the CPU, which is the definition and has no error.
    """
    weights = open_weights(source)
    layers = layers_of(source, weights, graph)
    known = {layer.name for layer in layers}
    wanted = list(names)
    for name in wanted:
        if name not in known or name not in spectra:
            raise SlimfastError(f"{weights.source}: no layer {name!r}{did_you_mean(name, known)}")
    return _again(layers, weights, spectra, wanted, backend)


def _unsettled(spectra: Iterable[Spectrum], taus: Sequence[float]) -> list[str]:
    return [s.name for s in spectra if not all(s.certified(explained_variance=tau) for tau in taus)]


def _again(
    layers: Sequence[Layer],
    weights: Weights,
    spectra: Mapping[str, Spectrum],
    names: Iterable[str],
    backend: str,
) -> dict[str, Spectrum]:
    steps: dict[Options, list[Layer]] = {}
    wanted = set(names)
    for layer in layers:
        if layer.name in wanted:
            old = spectra[layer.name]
            exact = old.dtype == "float64"
            step = Options(
                dtype=torch.float64,
                scaling=old.scaling,
                member_scaling=old.member_scaling,
                backend="reference" if exact else backend,
                on_cpu=exact,
            )
            steps.setdefault(step, []).append(layer)
    found: dict[str, Spectrum] = {}
    for step, some in steps.items():
        found |= _measure(some, weights, step, None)
    return found


def _measure(
    layers: Sequence[Layer], weights: Weights, options: Options, progress: Progress | None
) -> dict[str, Spectrum]:
    spectra: dict[str, Spectrum] = {}
    for layer, values, trace, dtype in measure_layers(layers, weights, options):
        eigenvalues: FloatArray = np.maximum(values.numpy()[::-1], 0.0)
        name: Dtype = "float64" if dtype == torch.float64 else "float32"
        exact = options.on_cpu and options.backend == "reference"
        spectra[layer.name] = Spectrum(
            name=layer.name,
            n=layer.n,
            d=layer.d,
            eigenvalues=eigenvalues,
            trace=trace,
            error=0.0 if exact else _error(eigenvalues, layer.d, name),
            dtype=name,
            scaling=options.scaling,
            member_scaling=options.member_scaling,
        )
        if progress is not None:
            progress(len(spectra), len(layers))
    return spectra


def _error(eigenvalues: FloatArray, d: int, dtype: Dtype) -> float:
    """The bound on F's error: the probabilistic form of the Lidskii and Ky Fan bounds, with a measured
    constant.

    Sums of d products in blocks of 128 err like sqrt(d / 128) u, a reduction to tridiagonal form like sqrt(m)
    u, each relative to |S|_F; rigorous bounds are hundreds of times wider and settle nothing.
    """
    if dtype == "float64":
        return FLOAT64_ERROR
    total = float(eigenvalues.sum())
    if total <= 0.0:
        return 0.0
    spread = float(np.linalg.norm(eigenvalues)) / total
    unit = float(np.finfo(np.float32).eps) / 2
    return FLOAT32_ERROR * unit * (math.sqrt(d / 128) + math.sqrt(len(eigenvalues))) * spread
