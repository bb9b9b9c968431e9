"""Hold what a recording is made of: calls of ATen operations, and references to the tensors they work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

# An axis and a divisor of its length: the number of a tensor in the recording, the dim, the divisor.
LengthOrigin = tuple[int, int, int]
SizeOrigins = tuple["LengthOrigin | None", ...]

_NESTS = frozenset({list, tuple, dict})


class Ref(NamedTuple):
    """A tensor in a recording: the same ``value`` is the same tensor object; an in-place op may change its
    shape."""

    value: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operation as it ran: ``arguments`` by schema name, defaults filled in, every tensor replaced by
    its Ref.

    ``pointwise``: PyTorch's own tag for an operation that works element by element with broadcasting.
    ``size_origins``: for each dim of the output the axis whose length was passed as its size, None where the
    size came from elsewhere. ``einsum``: which of the forward's einsums this is a part of, counted from 1; 0
    for none. ``sizes_computed``: its sizes were computed by PyTorch from those of its operand.
    ``numbers``: the integers, in order, that Python called the function with which it is a part of.
    """

    op: str
    module: str
    arguments: dict[str, Any]
    outputs: tuple[Ref, ...]
    pointwise: bool
    size_origins: SizeOrigins = ()
    einsum: int = 0
    sizes_computed: bool = False
    numbers: tuple[int, ...] = ()


def refs_in(argument: Any) -> list[Ref]:
    """List the tensors of a recorded argument, or of all arguments by name, in order."""
    if isinstance(argument, Ref):
        return [argument]
    if isinstance(argument, dict):
        argument = list(argument.values())
    if not isinstance(argument, (list, tuple)):
        return []
    refs: list[Ref] = []
    for item in argument:
        if type(item) is Ref:
            refs.append(item)
        elif type(item) in _NESTS:
            refs += refs_in(item)
    return refs
