"""Spectra measured from weights, in float32 where that settles the widths."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from slimfast.arrays import Progress
from slimfast.distributed.team import Team
from slimfast.errors import ArgumentError, SlimfastError, did_you_mean
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.kernels.dispatch import backend_module
from slimfast.spectra.effective_weights import open_effective
from slimfast.spectra.eigenvalues import Options, Scaling
from slimfast.spectra.execution import RunContext, measure
from slimfast.spectra.sidecar import open_sidecar
from slimfast.spectra.spectrum import Spectrum, check_tau
from slimfast.spectra.unit_matrices import Layer, layers_of
from slimfast.storage.weights import Source, Weights
from slimfast.wrappers import unwrapped

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


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
    resume: str | os.PathLike[str] | None = None,
    team: Team | None = None,
) -> dict[str, Spectrum]:
    """Measure the spectrum of every channel group that has weights of its own.

    The weights of a group's producers form its units' rows, each member centred on its own, and
    S = sum of Xc Xc^T / (d - 1) over them. Weights are those that the layers compute with: masked, normed,
    or otherwise made of parameters, and 0 where a batch norm or a filter behind multiplies by 0. Files of
    safetensors are read a few layers at a time, ahead of the arithmetic: what is in memory is no more than
    the parameters of the largest layer, its (m, m) workspace and 1 GiB.

    Args:
        source: A module, a mapping of names to tensors, or the path of a file (see
            :func:`slimfast.storage.weights.open_weights`).
        graph: The groups. Without one every floating tensor of two or more dims is a layer, and dim 0 its
            units.
        dtype: float32 (float64 for float64 weights) unless it says otherwise.
        taus: The layers of which float32 does not settle the width at each of them are measured again, in
            float64; where that comes within 1e-12 of a tau, by LAPACK in float64, which defines the width.
        scaling: ``"unit"`` gives every unit unit variance.
        member_scaling: Gives every member of a group the same total variance.
        backend: The kernels to use.
        progress: Called with the number of layers done and of all; what it raises
            (:class:`slimfast.Cancelled`) ends the work.
        resume: A sidecar (:mod:`slimfast.spectra.sidecar`) from which finished layers are taken if their
            weights and these options are what they were, and which the others are appended to; the result is
            the same bit for bit.
        team: The processes that share the layers (:func:`slimfast.join_team`); every one gets all spectra.

    Returns:
        The spectra by group.

    Raises:
        SlimfastError: Naming the layer, for weights that are missing, empty, of another shape than the
            graph's, or not finite.

    Example:
        spectra = slimfast.measure_spectra(model, slimfast.trace_channels(model, example))
        spectra["layer1.0.conv1"].width(explained_variance=0.9)
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ArgumentError(f"measure_spectra: expected dtype float32 or float64, got {dtype}")
    if scaling not in ("raw", "unit"):
        raise ArgumentError(f"measure_spectra: expected scaling 'raw' or 'unit', got {scaling!r}")
    if backend != "auto":
        backend_module(backend)
    for tau in taus or ():
        check_tau("measure_spectra", tau)
    if isinstance(source, nn.Module):
        source = unwrapped(source)
    weights = open_effective(source, graph)
    layers = layers_of(source, weights, graph)
    options = Options(dtype=dtype, scaling=scaling, member_scaling=member_scaling, backend=backend)
    _log.info("measuring %d layers of %s", len(layers), weights.source)
    with _run(progress, resume, team) as run:
        spectra = until_settled(
            measure(layers, weights, options, run),
            lambda found: (found, _unsettled(found.values(), taus or ())),
            lambda found, names: _again(layers, weights, found, names, backend, run),
        )
    return {layer.name: spectra[layer.name] for layer in layers}


def until_settled(
    spectra: Mapping[str, Spectrum],
    solve: Callable[[Mapping[str, Spectrum]], tuple[Result, Sequence[str]]],
    again: Callable[[Mapping[str, Spectrum], Sequence[str]], Mapping[str, Spectrum]],
) -> Result:
    """Solve something from spectra, those that leave it open measured again until none does.

    ``solve`` gives the result and the names of the spectra whose error leaves it open; ``again`` measures
    these more exactly, at last without an error.
    """
    result, unsettled = solve(spectra)
    while unsettled:
        _log.info("measuring %d layers again, more exactly", len(unsettled))
        spectra = {**spectra, **again(spectra, unsettled)}
        result, unsettled = solve(spectra)
    return result


def measure_again(
    source: Source,
    spectra: Mapping[str, Spectrum],
    names: Iterable[str],
    graph: ChannelGraph | None = None,
    *,
    backend: str = "auto",
    resume: str | os.PathLike[str] | None = None,
    team: Team | None = None,
) -> dict[str, Spectrum]:
    """Measure the named spectra again, each one step more exactly than it was, under its own scaling.

    The steps: float32; float64; float64 by LAPACK on the CPU, which is the definition and has no error.
    ``resume`` and ``team`` as for :func:`measure_spectra`.
    """
    weights = open_effective(source, graph)
    layers = layers_of(source, weights, graph)
    known = {layer.name for layer in layers}
    wanted = list(names)
    for name in wanted:
        if name not in known or name not in spectra:
            raise SlimfastError(f"{weights.source}: no layer {name!r}{did_you_mean(name, known)}")
    with _run(None, resume, team) as run:
        return _again(layers, weights, spectra, wanted, backend, run)


@contextmanager
def _run(
    progress: Progress | None, resume: str | os.PathLike[str] | None, team: Team | None
) -> Iterator[RunContext]:
    """Open what goes along with one measurement, its sidecar too; each rank of a team has its own."""
    if resume is None:
        yield RunContext(progress, None, team)
        return
    rank = team.rank if team is not None else 0
    with open_sidecar(f"{os.fspath(resume)}.{rank}" if rank else resume) as sidecar:
        yield RunContext(progress, sidecar, team)


def _unsettled(spectra: Iterable[Spectrum], taus: Sequence[float]) -> list[str]:
    return [s.name for s in spectra if not all(s.certified(explained_variance=tau) for tau in taus)]


def _again(
    layers: Sequence[Layer],
    weights: Weights,
    spectra: Mapping[str, Spectrum],
    names: Iterable[str],
    backend: str,
    run: RunContext,
) -> dict[str, Spectrum]:
    """Measure each once more, more exactly, which progress does not count."""
    run = RunContext(None, run.sidecar, run.team)
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
        found |= measure(some, weights, step, run)
    return found
