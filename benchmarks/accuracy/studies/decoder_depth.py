"""Decoders made shorter: whole layers dropped by divergence, alone and before their widths are cut."""

from __future__ import annotations

import math

from torch import nn

import slimfast
from benchmarks.accuracy.studies.study import Study
from slimfast.arrays import Arguments

LAYERS = "model.layers"
# Windows that measure what the output loses without a layer.
_SAMPLES = 4
# The order in which the layers of a study's network go, and that study.
_orders: dict[int, tuple[Study, tuple[str, ...]]] = {}


def dropped(study: Study, share: float, *, repair: bool) -> nn.Module:
    """As many layers dropped as leave the share of all parameters."""
    return without(study, math.ceil(_too_many(study, share)), repair=repair)


def with_widths(study: Study, share: float, layers: int) -> nn.Module:
    """So many layers dropped and mended, or as many as the share has too many, and the MLPs of the others cut
    to the share of all parameters, as the default cuts them.
    """
    short = without(study, min(layers, int(_too_many(study, share))), repair=True)
    example, batches = _example(study), [kwargs for _, kwargs in study.calibration.batches]
    graph = slimfast.trace_channels(short, example, include=("channel",))
    calibration = slimfast.calibrate(short, graph, batches)
    whole = sum(p.numel() for p in study.model.parameters())
    plan = slimfast.plan(short, graph=graph, params=round(share * whole), calibration=calibration)
    return slimfast.prune_channels(
        short, plan, select="activations", repair="activations", calibration=calibration, verify=False
    )


def _too_many(study: Study, share: float) -> float:
    """How many layers have as many parameters as are to go; to the precision of a share."""
    whole = sum(p.numel() for p in study.model.parameters())
    each = sum(p.numel() for p in study.model.get_submodule(f"{LAYERS}.0").parameters())
    return round((1.0 - share) * whole / each, 6)


def without(study: Study, count: int, *, repair: bool) -> nn.Module:
    """So many layers dropped, by divergence."""
    batches = [kwargs for _, kwargs in study.calibration.batches]
    known = _orders.get(id(study), (study, ()))[1]
    if len(known) < count:
        found = slimfast.drop_layers(
            study.model, _example(study), calibration=batches, layers=count, samples=_SAMPLES, repair=False
        )
        known = slimfast.depth_report(found).dropped
        _orders[id(study)] = study, known
    chosen = known[:count]
    short = slimfast.drop_layers(
        study.model, _example(study), calibration=batches, layers=chosen, repair=repair
    )
    print(slimfast.depth_report(short), flush=True)
    return short


def _example(study: Study) -> dict[str, object]:
    first: Arguments = study.calibration.batches[0]
    return {name: value[:1] for name, value in first[1].items()}
