"""What the decoder benchmark compares: how each thin decoder is made, before any training."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.studies import allocations, decoder_depth
from benchmarks.accuracy.studies.study import Study
from slimfast.graph import ChannelGroup
from slimfast.plans import Plan
from slimfast.plans.controls import uniform_like
from slimfast.pruning.prune import prune_channels

CUT = ("head", "channel")
"""The kinds of groups that are cut; the residual stream and the positions inside heads stay."""
LAYERS = "model.layers."
MEMORY = 512 << 20
"""Bytes of activations that are held at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """How a thin decoder is made: ``plan`` from a study and the share of all parameters, or ``make`` at once
    where that is None; ``moments``: whether the study's network has to be calibrated for it;
    ``curves``: whether the plan goes by error curves.
    """

    plan: Callable[[Study, float], Plan] | None
    select: str = "activations"
    repair: str | None = None
    control: bool = True
    make: Callable[[Study, float], nn.Module] | None = None
    moments: bool = True
    curves: bool = False


def uniform_mlp(study: Study, share: float) -> Plan:
    """The same share of the channels of every MLP, heads left whole."""
    plan = study.plan(study.spectra, share, include=("channel",))
    return uniform_like(plan, study.graph, study.spectra, budget=study.budget)


def marginal_gain_mlp(study: Study, share: float) -> Plan:
    """The default's widths, of MLP channels alone."""
    return study.plan({}, share, curves=study.curves, include=("channel",))


def data_free(study: Study, share: float) -> Plan:
    """The default without a calibration: one explained variance of the weights."""
    return study.plan(study.spectra, share)


def flap(study: Study, share: float) -> Plan:
    """FLAP (An et al., AAAI 2024) on the MLPs: a channel counts as much as it fluctuates times the squared
    norm of the weights that read it, in standard scores of its layer; the least go first from all layers.
    """
    groups = {group.name: group for group in study.graph if group.kind == "channel"}
    scores = {name: fluctuation(study, group) for name, group in groups.items()}
    order = sorted(
        ((score - values.mean()) / values.std(), name, unit)
        for name, values in scores.items()
        for unit, score in enumerate(values)
    )
    within = study.within(share)
    names = [group.name for group in study.graph]
    widths = np.array([group.n for group in study.graph])
    least = {name: set(range(group.n)) for name, group in groups.items()}
    for _, name, unit in order:
        if within(widths):
            break
        if len(least[name]) > 1:
            least[name].discard(unit)
            widths[names.index(name)] -= 1
    whole = {group.name: list(range(group.n)) for group in study.graph}
    return allocations.kept(study, whole | {name: sorted(units) for name, units in least.items()})


def fluctuation(study: Study, group: ChannelGroup) -> np.ndarray:
    """FLAP's score of a group's units, float64 (n,): variances of what is read times squared norms."""
    total = np.zeros(group.n)
    for member in group.members:
        reading = study.calibration.readings.get(member.tensor)
        if member.role == "consumer" and reading is not None:
            found = (reading.covariance.diagonal() * reading.norms.square()).numpy()
            np.add.at(total, member.units[member.units >= 0], found[member.units >= 0])
    return total


def without_layers(study: Study, share: float) -> nn.Module:
    """ShortGPT (Men et al., 2024): the layers whose output is most like their input go, until at most the
    share of all parameters is left.
    """
    thin = copy.deepcopy(study.model)
    layers: Any = thin.get_submodule(LAYERS.rstrip("."))
    influence = influences(study.model, [args for _, args in study.calibration.batches])
    whole = sum(p.numel() for p in thin.parameters())
    each = sum(p.numel() for p in layers[0].parameters())
    gone = -int(-(1.0 - share) * whole // each)
    left = sorted(np.argsort(influence, kind="stable")[gone:].tolist())
    kept = nn.ModuleList(layers[i] for i in left)
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    thin.set_submodule(LAYERS.rstrip("."), kept)
    thin.config.num_hidden_layers = len(kept)
    return thin


@torch.no_grad()
def influences(model: nn.Module, batches: list[dict[str, Any]]) -> np.ndarray:
    """Block influence of each layer: 1 - the mean cosine of what goes in and what comes out of a token."""
    layers: Any = model.get_submodule(LAYERS.rstrip("."))
    sums, count = np.zeros(len(layers)), 0

    def look(place: int, module: nn.Module, args: Any, output: Any) -> None:
        after: Tensor = output[0] if isinstance(output, tuple) else output
        cosines = nn.functional.cosine_similarity(args[0].double(), after.double(), dim=-1)
        sums[place] += float(cosines.sum())

    hooks = [layer.register_forward_hook(functools.partial(look, i)) for i, layer in enumerate(layers)]
    for batch in batches:
        model(**batch)
        count += batch["input_ids"].numel()
    for hook in hooks:
        hook.remove()
    influence: np.ndarray = 1.0 - sums / count
    return influence


def thin_decoder(row: Row, study: Study, share: float) -> nn.Module:
    """The network of a row."""
    if row.plan is None:
        assert row.make is not None, "a row has a plan or makes its network"
        return row.make(study, share)
    options: dict[str, Any] = {"select": row.select, "repair": row.repair, "memory": MEMORY}
    plan = row.plan(study, share)
    return prune_channels(study.model, plan, calibration=study.calibration, verify=False, **options)


def _rows() -> dict[str, Row]:
    ways: dict[str, tuple[Callable[[Study, float], Plan], str, bool]] = {
        "marginal gain": (allocations.marginal_gain, "activations", False),
        "marginal gain, MLP": (marginal_gain_mlp, "activations", False),
        "uniform, MLP": (uniform_mlp, "activations", True),
        "uniform": (allocations.uniform, "activations", True),
        "FLAP's widths, MLP": (flap, "activations", True),
        "FLAP, MLP": (flap, "", True),
        "uniform, MLP, L2": (uniform_mlp, "l2", True),
        "group magnitude (torch-pruning's rule)": (allocations.group_magnitude, "", True),
        "data-free": (data_free, "lookahead", False),
    }
    rows = {"layers dropped (ShortGPT)": Row(None, make=without_layers, moments=False)}
    for repair in ("activations", None):
        make = functools.partial(decoder_depth.dropped, repair=repair is not None)
        name = f"layers dropped by divergence, {repair or 'no repair'}"
        rows[name] = Row(None, repair=repair, control=False, make=make, moments=False)
    for layers in (2, 4):
        make = functools.partial(decoder_depth.with_widths, layers=layers)
        name = f"{layers} layers dropped, then marginal gain, MLP, activations"
        rows[name] = Row(None, repair="activations", control=False, make=make, moments=False)
    for repair in ("activations", "moments", None):
        for name, (plan, select, control) in ways.items():
            if repair == "moments" and name not in ("marginal gain, MLP", "uniform, MLP"):
                continue
            chosen = _widths(plan) if name == "FLAP's widths, MLP" else plan
            rows[f"{name}, {repair or 'no repair'}"] = Row(
                chosen, select or "l1", repair, control, curves=name.startswith("marginal gain")
            )
    return rows


def _widths(allocation: Callable[[Study, float], Plan]) -> Callable[[Study, float], Plan]:
    """The widths of an allocation, without the units it keeps."""

    def allocate(study: Study, share: float) -> Plan:
        plan = allocation(study, share)
        return allocations.by_hand(study, {group.name: group.width for group in plan.groups})

    return allocate


ROWS = _rows()
