"""Say which of a forward's outputs stay as they are: those that a caller names, or all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor

from slimfast.errors import ArgumentError, ArgumentTypeError
from slimfast.graph.recording.nests import named_tensors_in

# Outputs by name, as ``logits`` or ``hidden_states.0`` or a glob, or by their number.
Outputs: TypeAlias = tuple[str | int, ...]


def as_outputs(outputs: Iterable[str | int] | str | int | None) -> Outputs | None:
    """Read which outputs are meant; ``TypeError`` for what is neither a name nor a number."""
    if outputs is None:
        return None
    wanted = (outputs,) if isinstance(outputs, (str, int)) else tuple(outputs)
    for one in wanted:
        if not isinstance(one, (str, int)) or isinstance(one, bool):
            raise ArgumentTypeError(f"outputs: expected names and numbers, got {one!r}")
    if not wanted:
        raise ArgumentError("outputs: expected at least one, got none")
    return wanted


def staying(places: Sequence[str], outputs: Outputs | None) -> list[bool]:
    """Say of each output whether it stays: one that is named, or is inside what is named.

    Where none of them is, as may be in training, all stay.
    """
    found = [outputs is None or any(_means(one, place, places) for one in outputs) for place in places]
    return found if any(found) else [True] * len(places)


def check_outputs(places: Sequence[str], outputs: Outputs | None) -> None:
    """Raise ``ValueError`` for a name that no output has."""
    for one in outputs or ():
        if not any(_means(one, place, places) for place in places):
            known = ", ".join(place or "0" for place in places[:8]) + (" ..." if len(places) > 8 else "")
            raise ArgumentError(f"outputs: no output is {one!r}; the forward returns {known or 'no tensors'}")


def staying_tensors(output: Any, outputs: Outputs | None) -> list[Tensor]:
    """List the tensors of an output that stay."""
    named = list(named_tensors_in(output))
    stay = staying([place for place, _ in named], outputs)
    return [tensor for (_, tensor), kept in zip(named, stay, strict=True) if kept]


def _means(one: str | int, place: str, places: Sequence[str]) -> bool:
    if isinstance(one, int):
        return list(dict.fromkeys(_first(other) for other in places)).index(_first(place)) == one
    return place == one or place.startswith(f"{one}.") or fnmatchcase(place, one)


def _first(place: str) -> str:
    return place.partition(".")[0]
