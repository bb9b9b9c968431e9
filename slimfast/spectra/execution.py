"""How a measurement is carried out, whatever is measured: recorded, resumed, shared out to processes."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from slimfast.arrays import FloatArray, Progress
from slimfast.distributed.team import Team, share_out
from slimfast.errors import SlimfastError
from slimfast.kernels import native
from slimfast.kernels.dispatch import select_backend
from slimfast.spectra.eigenvalues import Measured, Options, measure_layers
from slimfast.spectra.records import decode, encode
from slimfast.spectra.sidecar import Key, Sidecar, hashed
from slimfast.spectra.spectrum import Dtype, Spectrum
from slimfast.spectra.unit_matrices import Layer
from slimfast.storage.prefetch import fingerprint
from slimfast.storage.weights import Weights

# float32 measurements: F is within FLOAT32_ERROR u (sqrt(d / 128) + sqrt(m)) |S|_F / trace of float64
# LAPACK's. Over 249 layers of six networks the largest error was 1.2 times the rest of that product, over
# synthetic matrices (graded, of rank 3, far from zero mean) 2.4 times.
FLOAT32_ERROR = 16.0
# float64 measurements by other means than LAPACK's.
FLOAT64_ERROR = 1e-12


@dataclass(frozen=True, slots=True)
class RunContext:
    """What goes along with a measurement and does not change it.

    ``sidecar`` has the layers that were finished before, and gets those that are finished now; ``team`` are
    the processes that share the layers, all of which end with all spectra.
    """

    progress: Progress | None = None
    sidecar: Sidecar | None = None
    team: Team | None = None


def measure(
    layers: Sequence[Layer], weights: Weights, options: Options, run: RunContext
) -> dict[str, Spectrum]:
    """Measure the spectra of the layers by name, in any order."""
    spectra = _recorded(layers, weights, options, run)
    if run.team is not None:
        spectra = _exchanged(spectra, run.team)
    left = [layer for layer in layers if layer.name not in spectra]
    if run.team is None:
        return spectra | _measured(left, len(layers), weights, options, run)
    shares = share_out([_cost(layer) for layer in left], run.team.size)
    mine = [left[i] for i in shares[run.team.rank]]
    return spectra | _exchanged(_measured(mine, len(mine), weights, options, run), run.team)


def _measured(
    layers: Sequence[Layer], total: int, weights: Weights, options: Options, run: RunContext
) -> dict[str, Spectrum]:
    """Measure layers by this process; ``total`` is how many progress counts, those before included."""
    spectra: dict[str, Spectrum] = {}
    before = total - len(layers)
    seen: dict[str, str] | None = {} if run.sidecar is not None else None
    questions = _questions(layers, weights, options) if run.sidecar is not None else {}
    for measured in measure_layers(layers, weights, options, seen=seen):
        layer = measured.layer
        spectra[layer.name] = _spectrum(measured, options)
        if run.sidecar is not None and seen is not None:
            key = Key(questions[layer.name], _content(layer, seen))
            run.sidecar.append([(key, spectra[layer.name])])
        if run.progress is not None:
            run.progress(before + len(spectra), total)
        if run.team is not None:
            run.team.check()
    return spectra


def _recorded(
    layers: Sequence[Layer], weights: Weights, options: Options, run: RunContext
) -> dict[str, Spectrum]:
    """Find those layers of the sidecar whose weights are still what they were."""
    spectra: dict[str, Spectrum] = {}
    if run.sidecar is None or not run.sidecar.found:
        return spectra
    seen: dict[str, str] = {}
    for layer in layers:
        (question,) = _questions([layer], weights, options).values()
        if run.sidecar.content(question) is None:
            continue
        for part in layer.parts:
            if part.tensor not in seen:
                seen[part.tensor] = fingerprint(weights, part.tensor)
        spectrum = run.sidecar.spectrum(Key(question, _content(layer, seen)))
        if spectrum is not None:
            spectra[layer.name] = spectrum
    return spectra


def _exchanged(spectra: Mapping[str, Spectrum], team: Team) -> dict[str, Spectrum]:
    """Collect the spectra of all ranks, each read from the same bytes by every rank."""
    found: dict[str, Spectrum] = {}
    for rank, content in enumerate(team.exchange(b"".join(encode(s, {}) for s in spectra.values()))):
        at = 0
        for spectrum, _, end in decode(content, f"rank {rank}"):
            found.setdefault(spectrum.name, spectrum)
            at = end
        if at != len(content):
            raise SlimfastError(f"rank {rank}: expected records up to byte {len(content)}, got {at}")
    return found


def _cost(layer: Layer) -> float:
    """Count the multiplications of the covariance and of the eigenvalues, up to a common factor."""
    m = min(layer.n, layer.d)
    return float(m * layer.n * layer.d + m**3)


def _questions(layers: Sequence[Layer], weights: Weights, options: Options) -> dict[str, str]:
    """Hash by layer all that its spectrum follows from but the elements of its tensors."""
    return {
        layer.name: hashed(
            [
                (layer.name, layer.n, layer.d),
                [
                    (p.tensor, p.dim, None if p.units is None else hashed(p.units.tolist()), p.d)
                    for p in layer.parts
                ],
                [
                    (list(weights.infos[p.tensor].shape), str(weights.infos[p.tensor].dtype))
                    for p in layer.parts
                ],
                {name: str(value) for name, value in asdict(options).items()},
                _arithmetic(layer, weights, options),
            ]
        )
        for layer in layers
    }


def _arithmetic(layer: Layer, weights: Weights, options: Options) -> list[str]:
    """Name what computes the layer: another library or machine may round otherwise."""
    device = torch.device("cpu") if options.on_cpu else weights.load(layer.parts[0].tensor).device
    sample = [torch.empty(1, 1, device=device)]
    backends = [select_backend(op, sample, options.backend).__name__ for op in ("covariance", "eigvalsh")]
    loaded = native.cpu().module
    isa = loaded.isa() if loaded is not None and device.type == "cpu" else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [*backends, isa, name, torch.__version__, _version()]


def _version() -> str:
    try:
        return importlib.metadata.version("slimfast")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _content(layer: Layer, seen: Mapping[str, str]) -> str:
    return hashed(seen[part.tensor] for part in layer.parts)


def _spectrum(measured: Measured, options: Options) -> Spectrum:
    layer, values, trace, dtype = measured
    eigenvalues: FloatArray = np.maximum(values.numpy()[::-1], 0.0)
    name: Dtype = "float64" if dtype == torch.float64 else "float32"
    exact = options.on_cpu and options.backend == "reference"
    return Spectrum(
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


def _error(eigenvalues: FloatArray, d: int, dtype: Dtype) -> float:
    """Bound F's error: the probabilistic form of the Lidskii and Ky Fan bounds, with a measured constant.

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
