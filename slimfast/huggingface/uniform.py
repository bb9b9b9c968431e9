"""Plans for networks whose layers must stay equally wide: one share for each kind of layer."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, UnsupportedGraph
from slimfast.graph import ChannelGraph, ChannelGroup, trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.forward import dataless_copy, record
from slimfast.graph.recording.network import Network
from slimfast.huggingface.config_search import (
    built_without_data,
    changed_config,
    config_of,
    find_config,
    leaves,
)
from slimfast.plans import Plan, plan_widths
from slimfast.plans.amounts import amount_of
from slimfast.plans.costs import Cost, CostModel
from slimfast.plans.fingerprint import fingerprint
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.wrappers import unwrapped

# Halvings of the interval that holds tau.
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class _Knob:
    """Groups that keep the same share of their units: ``steps`` are the shares that are whole numbers of
    units in all of them.
    """

    groups: tuple[ChannelGroup, ...]
    steps: tuple[float, ...]

    def widths(self, step: int) -> dict[str, int]:
        return {group.name: round(self.steps[step] * group.n) for group in self.groups}


def plan_uniform(
    model: nn.Module,
    example: Any,
    *,
    params: float | str | None = None,
    macs: float | str | None = None,
    multiple_of: int = 1,
    backend: str = "auto",
) -> Plan:
    """Plan a Hugging Face transformer so that its stock class still describes it.

    Layers of the same kind keep the same number of units (attention heads, hidden units of the MLP, channels
    of the residual stream), each kind the share that the spectra of its groups give on average. What the
    configuration of the class cannot say stays whole: positions inside heads, and heads without the residual
    stream where the class takes the size of a head for a share of it. With few, large steps (heads) a plan
    stays further below the budget.

    Args:
        model: A ``transformers.PreTrainedModel``.
        example: A tensor, a tuple or a dict of its arguments.
        params: Budget of parameters, as for :func:`slimfast.plan_widths`.
        macs: Budget of multiply-adds, likewise.
        multiple_of: What widths are multiples of.
        backend: The kernels to use.

    Returns:
        A plan that :func:`slimfast.save_pretrained` can write the thin network of.

    Raises:
        ValueError: Without a budget.
        TypeError: For what is no transformer.
        SlimfastError: Where no attribute of the configuration narrows anything, or not enough.

    Example:
        plan = slimfast.plan_uniform(model, example, params=0.6)
        thin = slimfast.prune_channels(model, plan)
        slimfast.save_pretrained(thin, "thin", example)   # AutoModel.from_pretrained("thin") from now on
    """
    model = unwrapped(model)
    if not hasattr(model, "config") or not hasattr(model.config, "to_dict"):
        raise ArgumentTypeError(f"plan_uniform: expected a transformers model, got {type(model).__name__}")
    given = (("params", params), ("macs", macs))
    budget = {name: amount_of(name, value) for name, value in given if value is not None}
    if not budget:
        raise ArgumentError("plan_uniform: expected params or macs, got none of them")
    graph = trace_channels(model, example, exclude=["head_dim"])
    knobs = _knobs(model, graph, multiple_of)
    if not knobs:
        raise SlimfastError(
            f"plan_uniform: no attribute of {type(model.config).__name__} narrows the layers of "
            f"{type(model).__name__}: {len(graph)} groups, each of them or all together"
        )
    spectra = measure_spectra(model, graph, backend=backend)
    widths = _solve(graph, knobs, spectra, budget)
    config = config_of_cut(model, graph, widths)
    if config is None:
        raise SlimfastError(
            f"plan_uniform: no {type(model.config).__name__} describes the widths of the budget: {widths}"
        )
    _check_stock(model, config, graph)
    return replace(plan_widths(graph, spectra, overrides=widths), weights=fingerprint(model))


def _check_stock(model: nn.Module, config: Any, graph: ChannelGraph) -> None:
    """Refuse widths that the stock class takes and its forward does not: kernels that want multiples of 8."""
    stock = built_without_data(model, config)
    if stock is None:
        return
    try:
        record(Network.of(stock.eval()), *graph.inputs.example())
    except UnsupportedGraph as error:
        raise SlimfastError(
            f"plan_uniform: with the widths of the budget the stock {error}; multiple_of=16 may help"
        ) from error


def _knobs(model: nn.Module, graph: ChannelGraph, multiple_of: int) -> list[_Knob]:
    """Find kinds of layers that the configuration can narrow on their own, and those it can narrow
    together.
    """
    families: dict[tuple[str, str, int], list[ChannelGroup]] = {}
    for group in graph:
        families.setdefault((group.kind, re.sub(r"\d+", "*", group.name), group.n), []).append(group)
    knobs: list[_Knob | None] = []
    left = []
    for family in families.values():
        knob = _knob(model, graph, family, multiple_of)
        if knob is None:
            left.append(family)
        else:
            knobs.append(knob)
    # All of the others, or a pair of them: heads and the residual stream, where their ratio is fixed.
    for families_together in [left] * (len(left) > 1) + list(itertools.combinations(left, 2)):
        groups = [group for family in families_together for group in family]
        knobs.append(_knob(model, graph, groups, multiple_of))
    found = sorted((knob for knob in knobs if knob is not None), key=lambda knob: -len(knob.steps))
    # A group turns with one knob, the one with the finest steps.
    taken: set[str] = set()
    chosen = []
    for knob in found:
        names = {group.name for group in knob.groups}
        if len(knob.steps) > 1 and not names & taken:
            taken |= names
            chosen.append(knob)
    return chosen


def _knob(
    model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], multiple_of: int
) -> _Knob | None:
    """Make the knob of these groups, with the steps that the configuration takes; None where it has none."""
    shares = _steps(groups, multiple_of)
    # A half is what most sizes that must go together allow.
    probe = min(shares, key=lambda share: abs(share - 0.5))
    if probe == 1:
        return None
    config = config_of_cut(model, graph, {group.name: round(probe * group.n) for group in groups})
    if config is None:
        return None
    before, after = (dict(leaves(c.to_dict())) for c in (config_of(model), config))
    changes = {
        place: (old, after.get(place))
        for place, old in before.items()
        if old is not None and after.get(place) != old
    }

    def taken(share: float) -> bool:
        at = {place: round(share * old) for place, (old, _) in changes.items()}
        return changed_config(config_of(model), at) is not None

    return _Knob(tuple(groups), tuple(share for share in shares if share == 1 or taken(share)))


def config_of_cut(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> Any | None:
    """Find the configuration of ``model`` cut to these widths, None where its class has none for them."""
    keeps = {name: np.arange(width, dtype=np.int64) for name, width in widths.items()}
    cut, dataless = Cut(graph, keeps), Network.of(dataless_copy(Network.of(model)))
    patches = cut.attribute_patches(dataless)
    thin = cut.thin_copy(dataless, patches=patches, share=True)
    before = {name: tuple(tensor.shape) for name, tensor in dataless.tensors.items()}
    return find_config(thin, before, patches, graph.inputs.example())


def _steps(groups: Sequence[ChannelGroup], multiple_of: int) -> tuple[float, ...]:
    """List the shares that leave every group a whole number of units, a multiple where they are channels."""
    common = math.gcd(*(group.n for group in groups))
    shares = [j / common for j in range(1, common + 1)]

    def whole(group: ChannelGroup, share: float) -> bool:
        return share == 1 or group.kind == "head" or round(share * group.n) % multiple_of == 0

    return tuple(share for share in shares if all(whole(group, share) for group in groups))


def _solve(
    graph: ChannelGraph,
    knobs: Sequence[_Knob],
    spectra: Mapping[str, Spectrum],
    budget: Mapping[str, float],
) -> dict[str, int]:
    """Solve the widths at the largest tau that fits, then turn up any knob that still fits."""
    costs = CostModel(graph)
    whole = costs.cost(costs.full)
    limits = {name: value * getattr(whole, name) if value <= 1 else value for name, value in budget.items()}

    def widths(steps: Sequence[int]) -> dict[str, int]:
        return {
            name: w for knob, step in zip(knobs, steps, strict=True) for name, w in knob.widths(step).items()
        }

    def fits(steps: Sequence[int]) -> bool:
        cost = costs.cost(costs.vector(widths(steps)))
        return all(getattr(cost, name) <= limit for name, limit in limits.items())

    low, high = 0.0, 1.0
    steps = [0] * len(knobs)
    if not fits(steps):
        least = costs.cost(costs.vector(widths(steps)))
        raise SlimfastError(_unreachable(least, limits, whole))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = [_step_at(knob, spectra, middle) for knob in knobs]
        if fits(found):
            low, steps = middle, found
        else:
            high = middle
    # Knobs take their steps at other taus; those that come next are taken as long as they fit.
    order = sorted(range(len(knobs)), key=lambda k: _step_at(knobs[k], spectra, high) == steps[k])
    for k in order:
        while steps[k] + 1 < len(knobs[k].steps) and fits([s + (i == k) for i, s in enumerate(steps)]):
            steps[k] += 1
    return widths(steps)


def _step_at(knob: _Knob, spectra: Mapping[str, Spectrum], tau: float) -> int:
    """Find the first step that keeps the mean share of the groups' units at tau; one unit where tau is 0."""
    shares = [spectra[g.name].width(explained_variance=tau) / g.n if tau else 0.0 for g in knob.groups]
    wanted = float(np.mean(shares))
    return next((i for i, share in enumerate(knob.steps) if share >= wanted), len(knob.steps) - 1)


def _unreachable(least: Cost, limits: Mapping[str, float], whole: Cost) -> str:
    told = ", ".join(
        f"{name} <= {limit:,.0f} (at least {getattr(least, name):,} of {getattr(whole, name):,})"
        for name, limit in limits.items()
    )
    return f"plan_uniform: no widths that the configuration can say have {told}"
