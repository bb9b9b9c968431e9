"""Plans of checkpoints that do not fit in memory: the model is needed for its code alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration import Calibration, ErrorCurve
from slimfast.calibration.curves import resumed_curves
from slimfast.calibration.sums_file import SumsFile
from slimfast.checkpoints.repairing import digest_of
from slimfast.checkpoints.shard_folder import as_they_are
from slimfast.checkpoints.streamed import MEMORY, WEIGHTS, streamed_copy
from slimfast.distributed.team import Team
from slimfast.graph import trace_channels
from slimfast.graph.recording.module_copies import aliases
from slimfast.plans import Allocation, Plan, plan_widths
from slimfast.plans.fingerprint import fingerprint_of
from slimfast.plans.language_models import warn_without_data
from slimfast.plans.planning import calibration_for_gain
from slimfast.plans.request import WidthOptions, check_request, takes_width_options
from slimfast.plans.solving import settled_plan
from slimfast.spectra import Spectrum, measure_again, measure_spectra
from slimfast.spectra.eigenvalues import Scaling
from slimfast.storage.stored_tensors import Shelf
from slimfast.storage.weights import Source, Weights, open_weights


@takes_width_options
def plan_checkpoint(
    source: Source,
    model: nn.Module,
    example: Any,
    *,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    allocation: Allocation | None = None,
    calibration: Calibration | None = None,
    curves: Mapping[str, ErrorCurve] | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "raw",
    member_scaling: bool = False,
    memory: int = MEMORY,
    backend: str = "auto",
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    team: Team | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """Plan a model whose weights stay in ``source`` and are read a few layers at a time.

    The plan is that of :func:`slimfast.plan`. The other keywords are those of :func:`slimfast.plan_widths`
    and :func:`slimfast.measure_spectra`.

    Args:
        source: A file or folder of weights, a mapping of tensors or a module.
        model: The network, for the tracing; it may be on the meta device.
        example: Its input, for the tracing; likewise.
        outputs: Which outputs stay as they are, as for :func:`slimfast.trace_channels`.
        also: Examples of other calls, likewise.
        allocation: How a budget is spent, as for :func:`slimfast.plan`.
        calibration: From :func:`slimfast.calibrate_checkpoint` or :func:`slimfast.calibrate`: a budget is
            spent by its error curves. The network runs from its files, a few samples at a time.
        curves: Error curves by which a budget is spent, without spectra.
        spectra: Saved ones, which save the measurement.
        memory: Bytes of activations that a forward and its backward pass may hold: so many samples run at
            once, one at least.
        resume: The file of finished layers, as for :func:`slimfast.measure_spectra`; with a calibration, of
            the sums over samples that are done.

    Returns:
        One width for each channel group.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For weights that are not the model's, and for a budget that cannot be reached.

    Example:
        with torch.device("meta"):
            model = build()
        plan = slimfast.plan_checkpoint("model.safetensors.index.json", model, tokens, params=0.6)
    """
    request = check_request(options)
    by_gain = calibration_for_gain(allocation, calibration, request)
    graph = trace_channels(model, example, outputs=outputs, also=also)
    if by_gain is not None and curves is None:
        weights = open_weights(source)
        network = streamed_copy(model, weights, Shelf(WEIGHTS))
        job = f"{as_they_are(weights)} {digest_of(by_gain)} {memory}"
        curves = resumed_curves(
            network,
            graph,
            by_gain,
            memory=memory,
            backend=backend,
            progress=progress,
            resume=None if resume is None else SumsFile(Path(resume), job),
        )
    if curves is not None:
        # Widths by gain need no spectra; those that are given are shown.
        gained = plan_widths(graph, spectra or {}, curves=curves, **options)
        return dataclasses.replace(gained, weights=stored_fingerprint(open_weights(source), model))
    warn_without_data(model, "plan: widths are chosen")
    if spectra is None:
        spectra = measure_spectra(
            source,
            graph,
            dtype=dtype,
            scaling=scaling,
            member_scaling=member_scaling,
            backend=backend,
            progress=progress,
            resume=resume,
            team=team,
        )

    def again(measured: Mapping[str, Spectrum], names: Sequence[str]) -> dict[str, Spectrum]:
        return measure_again(source, measured, names, graph, backend=backend, resume=resume, team=team)

    settled = settled_plan(graph, spectra, request, again)
    return dataclasses.replace(settled, weights=stored_fingerprint(open_weights(source), model))


def stored_fingerprint(weights: Weights, model: nn.Module) -> str | None:
    """Compute the fingerprint of the model's parameters as they are stored; None where some are not."""
    first = aliases(model)
    stored = {first.get(name, name): name for name in weights.infos}
    names = [name for name, _ in model.named_parameters()]
    if not stored.keys() >= set(names):
        return None
    return fingerprint_of((name, weights.load(stored[name])) for name in names)
