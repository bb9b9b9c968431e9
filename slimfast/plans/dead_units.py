"""Which units of a network are dead: masked, zero, or silenced, so that removing them loses nothing.

A unit is dead where everything that makes it is 0, where a norm or a depthwise filter multiplies it by 0, or
where nothing reads it. What a dead unit still emits, its bias behind the nonlinearity, is the same for every
input. It can go where that constant is 0 for all layers that read it, or where these can take it over
exactly: into a bias, or into the mean of the batch norm behind. A convolution that pads with zeros cannot.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, BoolArray, IntArray
from slimfast.calibration.consumers import input_of, to_device
from slimfast.calibration.forward import run, running
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup, Member
from slimfast.graph.recording.inputs import arguments, map_leaves
from slimfast.graph.recording.network import Network

# The share of its size by which rounding may move a constant from place to place.
_ROUNDING = 1e-5
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, eq=False)
class DeadUnits:
    """What was found of a group: the units that can go (sorted), and in words what cannot, and why."""

    removable: IntArray
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What one layer reads of a group: ``values`` (n,) is the constant that it gets of each unit.

    NaN where it is no constant. ``taken_over``: whether the layer can take the constant over, exactly.
    """

    layer: str
    values: Tensor
    taken_over: bool


class Masks:
    """The dead units of a network, as its layers compute with its weights.

    ``example`` and other numbers of its shapes are run through a copy of the network, to see what dead units
    emit. Raises :class:`SlimfastError` for weights without values and a forward that fails.
    """

    def __init__(self, network: Network, graph: ChannelGraph, example: Any = None) -> None:
        for name, tensor in network.tensors.items():
            if tensor.is_meta:
                raise SlimfastError(f"masks: {name} is a meta tensor and has no values")
        self._network, self._graph = network, graph
        self._tensors = graph.effective(network.tensors)
        self._zero = functools.cache(self._zero_slices)
        self._layers = {m.tensor: m.dim for g in graph for m in graph.consumers(g)}
        given = graph.inputs.example() if example is None else arguments(example)
        inputs = [given, map_leaves(given, _varied)]
        self._read = _watch(network.model, {name.rpartition(".")[0] for name in self._layers}, inputs)

    def of(self, group: ChannelGroup) -> DeadUnits:
        """Find the units of a group that can go without a change of what the network computes."""
        members = self._graph.measured(group)
        producers = [m for m in members if m.role == "producer"]
        consumers = [m for m in members if m.role == "consumer"]
        made = np.array([self._dead_in(m, group.n) for m in producers])
        silenced = [
            self._dead_in(m, group.n) for m in members if m.role == "follower" and self._multiplies(m)
        ]
        dead = np.any([made.all(0), *silenced], axis=0)
        unread = (
            np.all([self._dead_in(m, group.n) for m in consumers], axis=0) if consumers else ~dead & False
        )
        notes = self._partly_dead(producers, made, dead | unread)
        candidates = np.flatnonzero(dead | unread)
        if len(candidates) and (group.inexact is not None or not consumers or group.kind == "head_dim"):
            why = group.inexact or "what reads them is no layer"
            return DeadUnits(candidates[:0], _joined([*notes, f"{len(candidates)} dead units stay: {why}"]))
        readings = [self._reading(member, group.n) for member in consumers]
        why_not = [None if unread[unit] else _why_not(readings, int(unit)) for unit in candidates]
        removable = candidates[[why is None for why in why_not]]
        if len(removable) == group.n:
            removable = removable[1:]
            notes.append("all of its units are dead; one stays")
        counted = Counter(why for why in why_not if why is not None)
        notes += [f"{count} dead units stay: {why}" for why, count in counted.items()]
        return DeadUnits(removable.astype(np.int64), _joined(notes))

    def folded(self, removed: Mapping[str, IntArray]) -> dict[str, Tensor]:
        """Compute the biases and means that take over what these units emit, by the names of the tensors."""
        changed: dict[str, Tensor] = {}
        for group in self._graph:
            units = removed.get(group.name, ())
            for member in self._graph.measured(group) if len(units) else ():
                if member.role == "consumer":
                    self._take_over(member, self._reading(member, group.n), np.asarray(units), changed)
        return changed

    def _take_over(
        self, member: Member, reading: _Reading, units: IntArray, changed: dict[str, Tensor]
    ) -> None:
        """Add what a layer makes of the constants of these units to its bias."""
        at = np.flatnonzero(np.isin(member.units, units))
        constants = reading.values[torch.from_numpy(member.units[at])]
        constants = torch.where(constants.isnan(), 0.0, constants)
        weight = self._tensors[member.tensor].detach().double().movedim(member.dim, 0)[torch.from_numpy(at)]
        sums = weight.reshape(*weight.shape[:2], -1).sum(2)
        shift = constants.to(sums.device) @ sums
        if not bool(shift.any()):
            return
        name, sign = self._takes_over(member.tensor)
        old = changed.get(name, self._network.tensors[name].detach())
        changed[name] = (old.double() + sign * shift.to(old.device)).to(old.dtype)

    def _takes_over(self, weight: str) -> tuple[str, float]:
        """Name the tensor that takes over what a layer makes of a constant, and its sign; "" for none."""
        tensors, tied = self._network.tensors, set(self._network.tied.values())
        path = weight.rpartition(".")[0]
        module = self._network.modules.get(path)
        if isinstance(module, _CONVOLUTIONS):
            no_border = (
                not any(module.padding) if isinstance(module.padding, tuple) else module.padding == "valid"
            )
            if module.groups > 1 or not (no_border or module.padding_mode != "zeros"):
                return "", 0.0
        bias = f"{path}.bias" if path else "bias"
        norm = self._graph.behind.get(weight)
        if bias in tensors and bias not in tied:
            return bias, 1.0
        if getattr(module, "bias", None) is None and norm is not None and norm.mean and norm.mean not in tied:
            return norm.mean, -1.0
        return "", 0.0

    def _reading(self, member: Member, n: int) -> _Reading:
        """Look at what a layer has read of each unit."""
        path = member.tensor.rpartition(".")[0]
        seen = self._read.get(path)
        values = torch.full((n,), torch.nan, dtype=torch.float64, device="cpu")
        module = self._network.modules.get(path)
        if seen is not None and _reads_in_order(module, member):
            least, most = seen
            size = torch.maximum(least.abs(), most.abs())
            if len(least) == len(member.units):
                constant = torch.where(most - least <= _ROUNDING * size, (least + most) / 2, torch.nan)
                units = torch.from_numpy(member.units)
                values[units[units >= 0]] = constant[units >= 0]
                # of several indices of a unit each has its own constant
                counts = np.bincount(member.units[member.units >= 0], minlength=n)
                if counts.max() > 1:
                    values = self._of_all_indices(constant, units, n)
        return _Reading(path, values, bool(self._takes_over(member.tensor)[0]))

    def _of_all_indices(self, constant: Tensor, units: Tensor, n: int) -> Tensor:
        """Give a unit of several indices their constant where it is one for all of them, else NaN."""
        has = units >= 0
        high = torch.full((n,), -torch.inf, dtype=torch.float64, device="cpu")
        low = torch.full((n,), torch.inf, dtype=torch.float64, device="cpu")
        filled = torch.where(constant[has].isnan(), torch.inf, constant[has])
        high.scatter_reduce_(0, units[has], filled, "amax")
        low.scatter_reduce_(0, units[has], filled, "amin")
        return torch.where(high - low <= _ROUNDING * high.abs(), (high + low) / 2, torch.nan)

    def _dead_in(self, member: Member, n: int) -> BoolArray:
        """Say of each unit whether all that a tensor has of it is 0; (n,), False where it has nothing."""
        zero, has = self._zero(member.tensor, member.dim), member.units >= 0
        alive = np.bincount(member.units[has], ~zero[has], n) > 0
        there = np.bincount(member.units[has], minlength=n) > 0
        dead: BoolArray = there & ~alive
        return dead

    def _zero_slices(self, tensor: str, dim: int) -> BoolArray:
        rows = self._tensors[tensor].detach().movedim(dim, 0)
        zero: BoolArray = (rows.reshape(rows.shape[0], -1) == 0).all(1).cpu().numpy()
        return zero

    def _multiplies(self, member: Member) -> bool:
        """Say whether a tensor that goes along multiplies the units: a batch norm's scale, or filters."""
        path, _, name = member.tensor.rpartition(".")
        module = self._network.modules.get(path)
        depthwise = isinstance(module, _CONVOLUTIONS) and module.groups > 1
        return name == "weight" and (depthwise or isinstance(module, nn.modules.batchnorm._BatchNorm))

    def _partly_dead(self, producers: list[Member], made: BoolArray, gone: BoolArray) -> list[str]:
        """Tell of units that are dead in some layers that make them, and alive in others."""
        partly = made.any(0) & ~gone
        if not partly.any():
            return []
        names = [m.tensor for m, dead in zip(producers, made, strict=True) if (dead & partly).any()]
        others = [m.tensor for m, dead in zip(producers, made, strict=True) if (~dead & partly).any()]
        return [
            f"{int(partly.sum())} units are dead in {_some(names)} and stay: they live in {_some(others)}"
        ]


def _why_not(readings: Iterable[_Reading], unit: int) -> str | None:
    """Say what some layer that reads a dead unit cannot do without; None where all can."""
    for reading in readings:
        value = float(reading.values[unit])
        if math.isnan(value):
            return f"what {reading.layer} reads of them is not known to be constant"
        if value != 0.0 and not reading.taken_over:
            return f"{reading.layer} cannot take over the constant that they emit"
    return None


def _reads_in_order(module: nn.Module | None, member: Member) -> bool:
    """Say whether a layer reads with the indices of this dim what the indices of its input's axis are."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return True
    return isinstance(module, _CONVOLUTIONS) and module.groups == 1 and member.dim == 1


def _watch(
    model: nn.Module, paths: Iterable[str], inputs: list[Arguments]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run forwards, and note the least and the largest number that each layer reads at each index."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        if x is None or not x.numel():
            return
        dim = -1 - len(module.kernel_size) if isinstance(module, _CONVOLUTIONS) else -1
        rows = x.detach().movedim(dim, 0).reshape(x.shape[dim], -1).double().cpu()
        least, most = rows.amin(1), rows.amax(1)
        if path in seen and len(seen[path][0]) == len(least):
            least, most = torch.minimum(least, seen[path][0]), torch.maximum(most, seen[path][1])
        seen[path] = least, most

    with running(model) as (network, device):
        modules = dict(network.named_modules())
        for path in paths:
            if path in modules:
                hook = functools.partial(look, path)
                modules[path].register_forward_pre_hook(hook, with_kwargs=True)
        for args, kwargs in inputs:
            given = map_leaves((args, kwargs), functools.partial(to_device, device=device))
            run(network, given, "masks")
    return seen


def _varied(leaf: Any) -> Any:
    """Make another input of one: other numbers, and the same indices in another order."""
    if not isinstance(leaf, Tensor) or not leaf.dim():
        return leaf
    if not leaf.is_floating_point():
        return leaf.roll(1, -1)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(leaf.shape, generator=generator, device="cpu").to(leaf)


def _joined(notes: Iterable[str]) -> str:
    return "; ".join(notes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
