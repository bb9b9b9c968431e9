"""Read and write the fields of a latency table's JSON document, each under the type it must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slimfast.errors import SlimfastError, shown
from slimfast.latency.lengths import Polynomial
from slimfast.latency.pricing import TimedPiece
from slimfast.latency.surfaces import Point
from slimfast.storage.documents import Fields, check_integer

# Seconds; a forward that takes longer is no forward.
_LONGEST = 1e6


def piece_to_json(piece: TimedPiece) -> dict[str, Any]:
    """Write a piece."""
    return {
        "module": piece.module,
        "operations": list(piece.operations),
        "groups": [[list(group) for group in groups] for groups in piece.groups],
        "places": [[[[list(names), n] for names, n in p] for p in place] for place in piece.places],
        "seconds": [[list(point), seconds] for point, seconds in piece.seconds.items()],
    }


def piece_from_json(fields: Fields) -> TimedPiece:
    """Read a piece; :class:`SlimfastError` where its parts do not fit together."""
    where = fields.where
    groups = tuple(
        tuple(_pair(group, f"{where}: groups", 1) for group in _list(of_direction, f"{where}: groups", 1))
        for of_direction in _list(fields.raw("groups"), f"{where}: groups")
    )
    known = {name for of_direction in groups for name, _ in of_direction}
    places = tuple(
        _place(place, f"{where}: places", len(groups))
        for place in _list(fields.raw("places"), f"{where}: places", 1)
    )
    if {name for p in places[0] for names, _ in p for name in names} - known:
        raise SlimfastError(f"{where}: places: the first has other groups than the piece")
    full = tuple(of_direction[0][1] for of_direction in groups)
    seconds: dict[Point, float] = {}
    for pair in _list(fields.raw("seconds"), f"{where}: seconds", 1):
        point, value = _list(pair, f"{where}: seconds", 2, 2)
        widths = _list(point, f"{where}: seconds", len(full), len(full))
        key = tuple(check_integer(w, f"{where}: seconds", 1, n) for w, n in zip(widths, full, strict=True))
        seconds[key] = seconds_from_json(value, f"{where}: seconds")
    piece = TimedPiece(
        module=fields.string("module"),
        operations=tuple(_text(name, f"{where}: operations") for name in fields.raw("operations")),
        groups=groups,
        places=places,
        seconds=seconds,
    )
    fields.done()
    try:
        piece.surface()
    except KeyError:
        raise SlimfastError(
            f"{where}: seconds: some of the points that a piece is measured at are missing"
        ) from None
    return piece


def pairs_from_json(fields: Fields, name: str) -> tuple[tuple[float, float], ...]:
    """Read pairs of seconds, at least one."""
    where = fields.at(name)
    pairs = [_list(pair, where, 2, 2) for pair in _list(fields.raw(name), where, 1)]
    return tuple((seconds_from_json(a, where), seconds_from_json(b, where)) for a, b in pairs)


def _place(value: object, where: str, directions: int) -> tuple[Polynomial, ...]:
    polynomials = []
    for polynomial in _list(value, where, directions, directions):
        terms = []
        for term in _list(polynomial, where):
            names, count = _list(term, where, 2, 2)
            terms.append(
                (tuple(_text(n, where) for n in _list(names, where)), check_integer(count, where, 1))
            )
        polynomials.append(tuple(terms))
    return tuple(polynomials)


def _pair(value: object, where: str, low: int) -> tuple[str, int]:
    name, n = _list(value, where, 2, 2)
    return _text(name, where), check_integer(n, where, low)


def _list(value: object, where: str, least: int = 0, most: int | None = None) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
        raise SlimfastError(f"{where}: expected a list of {least} or more, got {shown(value)}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SlimfastError(f"{where}: expected a string, got {shown(value)}")
    return value


def seconds_from_json(value: object, where: str) -> float:
    """Read seconds: above 0, and no more than a forward can take."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= _LONGEST:
        raise SlimfastError(f"{where}: expected seconds above 0, got {shown(value)}")
    return float(value)
