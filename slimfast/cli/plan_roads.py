"""The roads from a model to a plan, one function each, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration.curves import ErrorCurve
from slimfast.calibration.folders import load_calibration
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.cli.curves import measured_curves
from slimfast.cli.option_groups import Widths
from slimfast.distributed.team import Team
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.huggingface.uniform import plan_uniform
from slimfast.plans import Plan, plan_from_masks
from slimfast.plans import plan as make_plan
from slimfast.plans.request import WidthOptions
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.storage.weights import Weights

# What a plan was made from, for the pictures of it.
Curves: TypeAlias = Mapping[str, Spectrum] | Mapping[str, ErrorCurve]


@dataclass(frozen=True)
class Journey:
    """What every road starts from.

    ``source``: the weights, in the network itself or in the file where they stay; ``wanted``: the keywords of
    ``plan`` that ``widths`` come to; ``spectra``: those that are at hand; ``shown``: curves are to be drawn.
    """

    network: nn.Module
    source: nn.Module | Weights
    example: Any
    widths: Widths
    wanted: WidthOptions
    outputs: list[str | int] | None
    also: Iterable[Any]
    calibration: Path | None
    spectra: Mapping[str, Spectrum] | None
    shown: bool
    device: str
    backend: str
    resume: Path | None
    progress: Progress
    team: Team | None

    @property
    def calls(self) -> dict[str, Any]:
        """The other calls that are traced, and the outputs that stay."""
        return {"outputs": self.outputs, "also": self.also}

    @property
    def measuring(self) -> dict[str, Any]:
        """How spectra are measured."""
        return {
            "backend": self.backend, "resume": self.resume, "progress": self.progress, "team": self.team,
        }  # fmt: skip

    @cached_property
    def graph(self) -> ChannelGraph:
        """The channel groups, traced where they are asked for."""
        return trace_channels(self.network, self.example, **self.calls)

    @cached_property
    def known_spectra(self) -> Mapping[str, Spectrum] | None:
        """Those at hand, or where they are to be drawn measured now; None for the plan to do so."""
        if self.spectra is not None or not self.shown:
            return self.spectra
        return measure_spectra(self.source, self.graph, **self.measuring)


# A plan, and the curves that it was made from, as far as they are at hand.
Road: TypeAlias = Callable[[Journey], tuple[Plan, Curves]]


def from_masks(journey: Journey) -> tuple[Plan, Curves]:
    """Keep the units that masks, zeros and dead scales leave."""
    widths = journey.widths
    found = plan_from_masks(
        journey.network, journey.example, include=widths.include or None, exclude=widths.exclude or None
    )
    return found, {}


def uniform(journey: Journey) -> tuple[Plan, Curves]:
    """Make the layers of a kind equally wide."""
    widths = journey.widths
    found = plan_uniform(
        journey.network,
        journey.example,
        macs=widths.macs,
        params=widths.params,
        latency=widths.latency,
        latency_table=widths.latency_table,
        peak_memory=widths.peak_memory,
        multiple_of=widths.multiples(),
        backend=journey.backend,
        **journey.calls,
    )
    return found, {}


def from_spectra(journey: Journey) -> tuple[Plan, Curves]:
    """Plan by the spectra of the weights, in memory or in their file."""
    known = journey.known_spectra
    return _by_weights(journey, spectra=known), known or {}


def from_shards(journey: Journey) -> tuple[Plan, Curves]:
    """Plan by a calibration, while the weights stay in their file."""
    assert journey.calibration is not None, "without one it is a plan by spectra"
    stored = load_calibration(journey.calibration)
    return _by_weights(journey, spectra=journey.spectra, calibration=stored), journey.spectra or {}


def _by_weights(journey: Journey, **known: Any) -> Plan:
    return plan_checkpoint(
        journey.source, journey.network, journey.example, **known, **journey.calls, **journey.measuring,
        **journey.wanted,
    )  # fmt: skip


def measured(journey: Journey) -> tuple[Plan, Curves]:
    """Plan a network that runs: by the error curves of a calibration, or within a budget of its time or
    memory.
    """
    data = journey.calibration
    calibration = None if data is None else load_calibration(data, device=journey.device)
    known: dict[str, Any]
    if journey.shown and calibration is not None and journey.widths.explained_variance is None:
        curves = measured_curves(
            journey.network, journey.graph, calibration, journey.backend, journey.progress
        )
        known, drawn = {"graph": journey.graph, **curves}, curves["curves"]
    else:
        spectra = journey.spectra if calibration is not None else journey.known_spectra
        known, drawn = {"spectra": spectra, **journey.calls}, spectra or {}
    found = make_plan(
        journey.network,
        journey.example,
        calibration=calibration,
        backend=journey.backend,
        progress=journey.progress,
        **known,
        **journey.wanted,
    )
    return found, drawn


def road_of(widths: Widths, *, masks: bool, equal: bool, calibrated: bool, streamed: bool) -> Road:
    """Choose the road by what was asked for and what there is."""
    if masks:
        return from_masks
    if equal:
        return uniform
    if calibrated and streamed:
        return from_shards
    if calibrated or (not streamed and (widths.latency is not None or widths.peak_memory is not None)):
        return measured
    return from_spectra
