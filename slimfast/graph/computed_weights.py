"""The weights that layers compute with, where these are not parameters but made of them before each use.

A mask, a weight norm, a spectral norm or any other parametrization leaves a parameter with which the layer
never computes anything itself: what counts is what is made of it. Frozen data again, and the arithmetic that
makes such a weight of the tensors of a network or of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slot(NamedTuple):
    """A place in a step's arguments where the tensor of this number stands."""

    value: int


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One ATen operation on the way to a weight: ``arguments`` by schema name, tensors as :class:`Slot`.

    ``outputs``: the numbers of what it makes. ``place``: its place among the forward's operations.
    """

    operation: str
    arguments: Mapping[str, Any]
    outputs: tuple[int, ...]
    place: int


@dataclass(frozen=True, slots=True, eq=False)
class ComputedWeight:
    """A weight that a forward makes of parameters and buffers before a layer takes it.

    Attributes:
        name: That of the layer and ``weight``; no tensor of the network has it.
        shape: Its shape.
        sources: The names of the tensors it is made of, by their numbers.
        steps: The operations that make it, in order; the last one's results have ``value``.
        value: Its own number.
        stands_for: For each (tensor, dim) of a parameter that no layer takes itself, the dim of this weight
            that is the same axis.
        unknown: The dims that may change and are no single axis of a parameter.
    """

    name: str
    shape: tuple[int, ...]
    sources: Mapping[int, str]
    steps: tuple[Step, ...]
    value: int
    stands_for: Mapping[tuple[str, int], int]
    unknown: frozenset[int] = frozenset()

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Make the weight of these tensors, which stay as they are."""
        # a step may write to what it is given, as observers of quantisation-aware training do
        held = {value: tensors[name].detach().clone() for value, name in self.sources.items()}
        device = next(iter(held.values())).device
        with torch.no_grad():
            for step in self.steps:
                operation = getattr(torch.ops.aten, step.operation.removeprefix("aten."))
                given = {key: _filled(argument, held, device) for key, argument in step.arguments.items()}
                held.update(zip(step.outputs, _tensors(operation(**given)), strict=True))
        return held[self.value]


@dataclass(frozen=True, slots=True)
class Behind:
    """What everything that a weight makes goes through, and nothing else reads on the way.

    ``dim``: the dim of the weight that is what it makes. ``silencers``: the scales of batch norms and the
    depthwise filters on the way, in order; where one has 0 for a channel, that channel is a constant.
    ``mean``: the running mean of the batch norm right behind, None where there is none.
    """

    dim: int
    silencers: tuple[str, ...]
    mean: str | None = None


class EffectiveTensors(Mapping[str, Tensor]):
    """The tensors of a network by name as its layers compute with them, each worked out when it is asked for.

    ``computed`` weights are there too; what is multiplied by 0 ``behind`` a weight is 0 in the weight.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        computed: Mapping[str, ComputedWeight],
        behind: Mapping[str, Behind],
    ) -> None:
        self._tensors = tensors
        self._computed = computed
        self._behind = behind

    def __getitem__(self, name: str) -> Tensor:
        tensor, silent = self._made(name), self.silenced(name)
        if silent is None:
            return tensor
        return tensor.detach().index_fill(self._behind[name].dim, silent.to(tensor.device), 0.0)

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._computed

    def __len__(self) -> int:
        return len(self._tensors) + len(self._computed)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._computed

    def silenced(self, name: str) -> Tensor | None:
        """Find the indices of what a weight makes that are multiplied by 0 behind it; None for no such."""
        behind = self._behind.get(name)
        found: Tensor | None = None
        for silencer in behind.silencers if behind is not None else ():
            if silencer in self:
                tensor = self._made(silencer).detach()
                zero = (tensor == 0).reshape(len(tensor), -1).all(1).cpu()
                found = zero if found is None else found | zero
        if found is None or not bool(found.any()):
            return None
        return found.nonzero()[:, 0]

    def _made(self, name: str) -> Tensor:
        """Look up a tensor, or make it of others."""
        made = self._computed.get(name)
        return self._tensors[name] if made is None else made.compute(self._tensors)


def _filled(argument: Any, held: Mapping[int, Tensor], device: torch.device) -> Any:
    """Put tensors in the place of their slots, and ``device`` in that of a recording's."""
    if isinstance(argument, Slot):
        return held[argument.value]
    if isinstance(argument, list):
        return [_filled(item, held, device) for item in argument]
    return device if isinstance(argument, torch.device) else argument


def _tensors(made: Any) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else tuple(made)
