"""What a forward chooses by values: rows behind a bound, an order, numbers. Two networks can choose alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import map_leaves, tensors_in
from slimfast.graph.recording.operators import operator_of
from slimfast.pruning.closeness import relative_difference

# What chooses an order or a place by the values of its operand, and returns as many whatever they are.
_ORDERS = frozenset(
    {"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median", "mode"}
)
_MASKS = (torch.bool, torch.uint8)

Run = Callable[[Any, str, Any, dict[str, Any]], Any]
How = Literal["note", "own", "take"]


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """One choice: what it was made of, and what came out."""

    name: str
    operands: tuple[Any, ...]
    result: Any


@dataclass(slots=True)
class Choices:
    """The choices of one forward, in order, which that of another network can take over.

    A run of the original notes them. A run that takes them gets the same masks, indices and numbers, and the
    values that it has itself at these places; what it would have chosen by is compared with what the original
    chose by: ``error`` is the largest difference of numbers, as a share of their size, and ``flips`` counts
    the masks and integers that are others, of ``made`` that were chosen.
    """

    error: float = 0.0
    flips: int = 0
    made: int = 0
    _kept: list[_Choice] = field(default_factory=list)
    _next: int = 0
    _how: How = "note"

    @property
    def names(self) -> tuple[str, ...]:
        """The operations that choose, each once."""
        return tuple(dict.fromkeys(choice.name for choice in self._kept))

    def begin(self, how: How) -> None:
        """Begin a run that notes its choices, makes its own, or takes those that were noted."""
        self._how, self._next = how, 0
        self.error, self.flips, self.made = 0.0, 0, 0
        if how == "note":
            self._kept.clear()

    def run(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], run: Run) -> Any:
        """Run an operation, which may choose."""
        if self._how == "own" or not _chooses(func, name, args):
            return run(func, name, args, kwargs)
        if self._how == "take":
            return self._taken(func, name, args, kwargs, run)
        operands = _copied((args, kwargs))
        result = run(func, name, args, kwargs)
        self._kept.append(_Choice(name, tuple(tensors_in(operands)), _copied(result)))
        return result

    def _taken(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], run: Run) -> Any:
        """Run an operation with what the original chose there."""
        at, self._next = self._next, self._next + 1
        if at >= len(self._kept) or self._kept[at].name != name:
            raise SlimfastError(
                f"verify: the thin network chooses by values ({name}) where the original does not"
            )
        choice = self._kept[at]
        own = list(tensors_in((args, kwargs)))
        # of what was cut each has its own
        pairs = [(mine, noted) for mine, noted in zip(own, choice.operands, strict=True)
                 if mine.shape == noted.shape]  # fmt: skip
        for mine, noted in pairs:
            self._compare(mine, noted)
        alike = len(pairs) == len(own)
        if alike and not isinstance(choice.result, (Tensor, list, tuple)):
            return choice.result
        noted_of = {id(mine): noted for mine, noted in pairs}
        writes = func._schema.is_mutable
        if writes:
            # what is written to has to be one's own
            noted_of.pop(id(args[0]), None)
        chosen = map_leaves((args, kwargs), lambda leaf: _without_floats(leaf, noted_of))
        result = run(func, name, *chosen)
        if writes or not alike:
            return result
        return _with_indices(result, choice.result, name, own, args, kwargs)

    def _compare(self, mine: Tensor, noted: Tensor) -> None:
        """Compare what two networks choose by."""
        if mine.is_floating_point() or mine.is_complex():
            self.error = max(self.error, relative_difference(mine, noted))
            return
        self.flips += int((mine != noted).sum())
        self.made += int(noted.count_nonzero()) if noted.dtype in _MASKS else noted.numel()


def _chooses(func: Any, name: str, args: Any) -> bool:
    """Say whether an operation chooses by values."""
    plain = name.rpartition(".")[2]
    decides = operator_of(func).decides
    if decides == "mask":
        given = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        return any(isinstance(index, Tensor) and index.dtype in _MASKS for index in given)
    if plain in ("max", "min", "median"):
        # of all of a tensor they choose nothing
        return len(args) > 1 and isinstance(args[1], int)
    return decides in ("length", "number") or plain.endswith("nms") or plain in _ORDERS


def _copied(value: Any) -> Any:
    return map_leaves(value, lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf)


def _without_floats(leaf: Any, noted_of: Mapping[int, Tensor]) -> Any:
    """Put what the original had in the place of masks and integers."""
    noted = noted_of.get(id(leaf)) if isinstance(leaf, Tensor) else None
    return leaf if noted is None or leaf.is_floating_point() or leaf.is_complex() else noted.clone()


def _with_indices(
    result: Any, noted: Any, name: str, own: Sequence[Tensor], args: Any, kwargs: Mapping[str, Any]
) -> Any:
    """Put the original's indices in the place of one's own, and the values at these places beside them."""
    if isinstance(result, Tensor):
        return result if result.is_floating_point() or result.is_complex() else noted.clone()
    parts = [
        mine if mine.is_floating_point() else other.clone() for mine, other in zip(result, noted, strict=True)
    ]
    if name.rpartition(".")[2] in _ORDERS and len(parts) == 2 and not parts[1].is_floating_point():
        source, indices, dim = own[0], parts[1], _dim_of(name, args, kwargs)
        reduced = indices.dim() < source.dim()
        values = source.gather(dim, indices.unsqueeze(dim) if reduced else indices)
        parts[0] = values.squeeze(dim) if reduced else values
    return tuple(parts)


def _dim_of(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """Find the dim along which an operation orders."""
    if "dim" in kwargs:
        return int(kwargs["dim"])
    place = {"topk": 2, "kthvalue": 2, "sort": 1}.get(name.rpartition(".")[2], 1)
    given = args[place] if len(args) > place else -1
    return int(given)
