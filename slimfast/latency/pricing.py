"""What a network takes at any widths: measured pieces added up, and corrected by whole networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimfast.arrays import FloatArray, IntArray
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.latency.lengths import Polynomial, length_at
from slimfast.latency.surfaces import Line, Point, Surface


@dataclass(frozen=True, slots=True)
class TimedPiece:
    """A piece of the forward where it was measured.

    ``groups``: in each direction the groups that move it, and their units; the first has the leading width.
    ``places``: for each place of the forward where the piece stands the length in each direction.
    ``seconds``: by the leading widths.
    """

    module: str
    operations: tuple[str, ...]
    groups: tuple[tuple[tuple[str, int], ...], ...]
    places: tuple[tuple[Polynomial, ...], ...]
    seconds: Mapping[Point, float]

    @property
    def full(self) -> Point:
        """The leading width in each direction where nothing is cut."""
        return tuple(groups[0][1] for groups in self.groups)

    def widths_at(self, point: Point) -> dict[str, int]:
        """Give each group of the first place its width at a point: all of a direction keep the same share."""
        return {
            name: max(1, round(n * width / groups[0][1]))
            for groups, width in zip(self.groups, point, strict=True)
            for name, n in groups
        }

    def surface(self) -> Surface:
        """Make a function of lengths of it."""
        lengths = {}
        for point in self.seconds:
            for at, polynomial in enumerate(self.places[0]):
                one = self.widths_at((*self.full[:at], point[at], *self.full[at + 1 :]))
                lengths[at, point[at]] = float(length_at(polynomial, one, _units(self.groups)))
        return Surface.of(self.full, lengths, self.seconds)


def _units(groups: Sequence[Sequence[tuple[str, int]]]) -> dict[str, int]:
    return {name: n for of_direction in groups for name, n in of_direction}


class PricedLatency:
    """The seconds of a forward at widths in the order of a graph's groups; remembers what it was asked.

    ``whole``: what the pieces add up to at a few widths, and what the network took there; none corrects
    nothing. ``factor``: what thin networks take beside that.
    """

    def __init__(
        self,
        pieces: Sequence[TimedPiece],
        whole: Sequence[tuple[float, float]],
        graph: ChannelGraph,
        *,
        factor: float = 1.0,
    ) -> None:
        number = {group.name: i for i, group in enumerate(graph.groups)}
        self._full = {group.name: group.n for group in graph.groups}
        self._parts: list[tuple[Callable[[Sequence[float]], float], tuple[Polynomial, ...], list[int]]] = []
        self.fixed = 0.0
        for piece in pieces:
            surface = piece.surface()
            for place in piece.places:
                names = {name for polynomial in place for term, _ in polynomial for name in term}
                if not names:
                    self.fixed += surface.whole
                    continue
                self._parts.append((surface, place, sorted(number[name] for name in names)))
        self._units = np.array([group.n for group in graph.groups], dtype=np.int64)
        self._names = [group.name for group in graph.groups]
        self._known: list[dict[bytes, float]] = [{} for _ in self._parts]
        self._factor = factor
        self._correction = _correction(whole) if whole else None

    @property
    def whole(self) -> float:
        """What the network takes as it is, as it was measured."""
        return self._corrected(self._added(self._units))

    def price(self, widths: IntArray) -> float:
        """Predict the seconds of a forward at these widths (g,)."""
        return self._factor * self._corrected(self._added(widths))

    def fixed_seconds(self) -> float:
        """Predict the seconds of what no width changes."""
        return self._factor * self._corrected(self.fixed)

    def takes_part(self, group: int) -> bool:
        """Whether a group, by its number, has a say in the time."""
        return any(group in groups for _, _, groups in self._parts)

    def along(self, group: int, widths: Sequence[int]) -> FloatArray:
        """Predict the seconds of the pieces that a group has a say in at each of its ``widths``, all else
        whole.
        """
        seconds = np.zeros(len(widths))
        for surface, place, groups in self._parts:
            if group in groups:
                own = ({self._names[group]: width} for width in widths)
                seconds += [surface([length_at(p, at, self._full) for p in place]) for at in own]
        return seconds

    def _added(self, widths: IntArray) -> float:
        total = self.fixed
        for known, (surface, place, groups) in zip(self._known, self._parts, strict=True):
            own = widths[groups]
            key = own.tobytes()
            found = known.get(key)
            if found is None:
                by_name = {self._names[g]: int(w) for g, w in zip(groups, own, strict=True)}
                found = known[key] = surface([length_at(p, by_name, self._full) for p in place])
            total += found
        return total

    def _corrected(self, added: float) -> float:
        return added if self._correction is None else self._correction(added)


def _correction(whole: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """Make what turns the sum of the pieces into what whole networks take: proportional beyond their ends."""
    slowest = 0.0
    pairs = {}
    for added, measured in sorted(whole):
        # a larger network is not faster: what looks so is noise
        slowest = max(slowest, measured)
        pairs[added] = slowest
    line = Line.of(pairs)
    low, high = line.lengths[0], line.lengths[-1]

    def corrected(added: float) -> float:
        if added < low:
            return added * line.values[0] / low
        return added * line.values[-1] / high if added > high else line(added)

    return corrected
