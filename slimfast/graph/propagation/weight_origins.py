"""Find what layers compute with: weights that a forward makes of parameters, and what goes on behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slimfast.graph.computed_weights import Behind, ComputedWeight, Slot, Step
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.rules.products import factors
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.op_registry import entry_of


class WeightOrigins:
    """Reads a recording whose labels have been followed for what its layers take as their weights.

    ``computed``: the weights that are made of parameters, by their names. ``behind``: the batch norms and
    depthwise filters behind a weight, by the weight's name, computed ones included. What goes on behind a
    weight that one of the ``also`` recordings uses too may be something else there, and is not looked at.
    """

    def __init__(
        self, network: Network, recording: Recording, flow: Propagation, also: Sequence[Recording] = ()
    ) -> None:
        self._network, self._recording, self._flow = network, recording, flow
        self._used_elsewhere = frozenset().union(*map(_used, also))
        taken = [(i, call, self._weight(call)) for i, call in enumerate(recording.calls)]
        self._taken = [(i, call, ref) for i, call, ref in taken if ref is not None]
        scaled = [
            (i, call.arguments.get("weight")) for i, call in enumerate(recording.calls) if _is_norm(call)
        ]
        self._scales = [(i, ref) for i, ref in scaled if isinstance(ref, Ref)]
        self._names = {ref.value: recording.names[ref.value] for _, _, ref in self._taken if self._own(ref)}
        self.computed = self._find_computed()
        self._names.update({weight.value: name for name, weight in self.computed.items()})
        self.behind = dict(self._find_behind())

    def _own(self, ref: Ref) -> bool:
        """Say whether a tensor is a parameter or a buffer itself."""
        return ref.value in self._recording.names

    def _weight(self, call: Call) -> Ref | None:
        """Find the weight of a layer."""
        weighs = entry_of(call.op).weighs
        if weighs == "layer":
            weight = call.arguments.get("weight")
            return weight if isinstance(weight, Ref) else None
        # a layer where the first factor is computed and the second is not
        if weighs == "product":
            first, second, _ = factors(call)
            flat = len(second.shape) == 2 and self._flow.knows(first.value) and self._flow.knows(second.value)
            if flat and self._flow.value(first).data and not self._flow.value(second).data:
                return second
        return None

    def _find_computed(self) -> dict[str, ComputedWeight]:
        """Find the weights and scales that are made of parameters which no layer takes themselves."""
        found: dict[str, ComputedWeight] = {}
        known: set[tuple[str, int]] = set()
        for i, ref in sorted([*((i, ref) for i, _, ref in self._taken), *self._scales], key=lambda at: at[0]):
            call = self._recording.calls[i]
            if self._own(ref) or self._flow.value(ref).data or not self._flow.value(ref).sources:
                continue
            stands_for = {key: dim for key, dim in self._stands_for(ref).items() if key not in known}
            name = f"{call.module}.weight" if call.module else "weight"
            while name in found or name in self._network.tensors:
                name += "'"
            weight = self._made(name, i, ref, stands_for) if stands_for else None
            if weight is not None:
                found[name] = weight
                known |= stands_for.keys()
        return found

    def _stands_for(self, ref: Ref) -> dict[tuple[str, int], int]:
        """Find the axes of parameters that are an axis of this weight, index by index."""
        labels = self._flow.labels
        taken = set(self._names.values())
        same: dict[tuple[str, int], int] = {}
        for dim, axis in enumerate(self._flow.axes(ref)):
            if axis.fixed:
                continue
            own = labels.partition.resolve(axis.labels)
            for name in sorted(self._flow.value(ref).sources - taken):
                for d, other in enumerate(labels.tensors[name].axes):
                    alike = not other.fixed and len(other) == len(axis) and (name, d) not in same
                    if alike and np.array_equal(labels.partition.resolve(other.labels), own):
                        same[name, d] = dim
        return same

    def _made(
        self, name: str, last: int, ref: Ref, stands_for: Mapping[tuple[str, int], int]
    ) -> ComputedWeight | None:
        """Collect the steps that make a weight; None where they cannot be taken again from named tensors."""
        needed, steps = {ref.value}, list[Step]()
        for place in reversed(range(last)):
            call = self._recording.calls[place]
            if any(out.value in needed for out in call.outputs):
                needed.update(r.value for r in refs_in(call.arguments))
                arguments = {key: _slotted(value) for key, value in call.arguments.items()}
                steps.append(Step(call.op, arguments, tuple(out.value for out in call.outputs), place))
        names = self._recording.names
        made = {value for step in steps for value in step.outputs}
        sources = {value: names[value] for value in sorted(needed) if value in names}
        if not needed <= made | sources.keys():
            # a tensor that the model keeps elsewhere
            return None
        stood_for = set(stands_for.values())
        unknown = frozenset(
            dim for dim, axis in enumerate(self._flow.axes(ref)) if not axis.fixed and dim not in stood_for
        )
        order = tuple(reversed(steps))
        weight = ComputedWeight(name, ref.shape, sources, order, ref.value, stands_for, unknown)
        return weight if self._can_be_made(weight) else None

    def _can_be_made(self, weight: ComputedWeight) -> bool:
        """Say whether the steps, taken again without data, make a tensor of the shape that was recorded."""
        tensors = self._network.tensors
        like = {name: torch.empty_like(tensors[name], device="meta") for name in weight.sources.values()}
        try:
            return tuple(weight.compute(like).shape) == weight.shape
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False

    def _find_behind(self) -> Iterator[tuple[str, Behind]]:
        """Find the weights whose layer runs once, with what alone reads what it makes."""
        calls = self._recording.calls
        reads = Counter(ref.value for call in calls if not _in_place(call) for ref in refs_in(call.arguments))
        reads.update(ref.value for ref in self._recording.outputs)
        readers = {
            ref.value: call for call in calls if not _in_place(call) for ref in refs_in(call.arguments)
        }
        changed = {call.outputs[0].value for call in calls if _in_place(call)}
        uses = Counter(ref.value for _, _, ref in self._taken)
        for _, call, ref in self._taken:
            name, dim, out = self._names.get(ref.value), _made_dim(call), call.outputs[0]
            if name is None or uses[ref.value] > 1 or self._is_used_elsewhere(name):
                continue
            way = list(self._way(out.value, reads, readers))
            silencers = [by for _, by in way if by is not None]
            if silencers and all(self._length(silencer) == ref.shape[dim] for silencer in silencers):
                right_behind = _is_norm(way[0][0]) and out.value not in changed
                mean = way[0][0].arguments.get("running_mean") if right_behind else None
                named = self._recording.names.get(mean.value) if isinstance(mean, Ref) else None
                yield name, Behind(dim, tuple(silencers), named)

    def _is_used_elsewhere(self, name: str) -> bool:
        """Say whether another recording uses a weight, or what it is made of."""
        made = self.computed.get(name)
        return not self._used_elsewhere.isdisjoint([name] if made is None else made.sources.values())

    def _way(
        self, value: int, reads: Mapping[int, int], readers: Mapping[int, Call]
    ) -> Iterator[tuple[Call, str | None]]:
        """Follow a tensor while one operation reads it, channel by channel, and say what multiplies it."""
        while reads[value] == 1 and value in readers:
            call = readers[value]
            multiplier = self._multiplier(call, value)
            if multiplier is None and not (call.pointwise and len(refs_in(call.arguments)) == 1):
                return
            yield call, multiplier
            value = call.outputs[0].value

    def _multiplier(self, call: Call, value: int) -> str | None:
        """Name the scale of a batch norm of this tensor, or the filters of a depthwise convolution of it."""
        weight, source = call.arguments.get("weight"), call.arguments.get("input")
        if not isinstance(weight, Ref) or not isinstance(source, Ref) or source.value != value:
            return None
        if _is_norm(call):
            return self._recording.names.get(weight.value, self._names.get(weight.value))
        depthwise = entry_of(call.op).weighs == "layer" and weight.shape[:2] == (
            call.arguments.get("groups"),
            1,
        )
        return self._names.get(weight.value) if depthwise and not call.arguments.get("transposed") else None

    def _length(self, silencer: str) -> int:
        """Count the channels that a tensor multiplies."""
        made = self.computed.get(silencer)
        return int(self._network.tensors[silencer].shape[0]) if made is None else made.shape[0]


def _used(recording: Recording) -> frozenset[str]:
    """Name the parameters and buffers that the operations of a recording use."""
    refs = {ref.value for call in recording.calls for ref in refs_in(call.arguments)}
    return frozenset(name for value, name in recording.names.items() if value in refs)


def _in_place(call: Call) -> bool:
    """Say whether a call does no more than change one tensor element by element, where it is."""
    own = call.arguments.get("self")
    alone = isinstance(own, Ref) and len(refs_in(call.arguments)) == 1
    return call.pointwise and call.op.endswith("_") and alone


def _is_norm(call: Call) -> bool:
    """Say whether a call is a batch norm."""
    return entry_of(call.op).weighs == "norm"


def _made_dim(call: Call) -> int:
    """Find the dim of a layer's weight that is what the layer makes."""
    return 1 if entry_of(call.op).weighs == "product" or call.arguments.get("transposed") else 0


def _slotted(argument: Any) -> Any:
    """Put slots in the place of references."""
    if isinstance(argument, Ref):
        return Slot(argument.value)
    return [_slotted(item) for item in argument] if isinstance(argument, (list, tuple)) else argument
