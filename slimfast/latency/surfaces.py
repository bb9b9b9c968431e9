"""How long a piece takes at any lengths, from where it was measured.

A piece changes in no direction, in one, or in two that matter (what a layer reads, and what it makes). Along
each of them it is measured at many widths, one above each multiple of 8 among them, so that the stairs of the
hardware stay; over the first two also on a coarse grid, which says how the two go together. What the line
adds to the coarse grid is a factor there. Further directions add what they change alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Channels that vector units and blocked layouts take at once.
STEP = 8
# Where all multiples of STEP are measured; of longer axes eight.
_DENSE = 128
_FEW = 16

# The leading width in each direction: a place where a piece is measured.
Point = tuple[int, ...]


def line_widths(n: int, *, fine: bool = True) -> list[int]:
    """List the widths of ``n`` at which a line is measured, ascending."""
    if n <= _FEW:
        return list(range(1, n + 1))
    if not fine:
        return coarse_widths(n)
    number = n // STEP if n <= _DENSE else 8
    multiples = {max(STEP, STEP * round(n * k / number / STEP)) for k in range(1, number + 1)}
    widths = {*multiples, *(width + 1 for width in multiples), *coarse_widths(n)}
    return sorted(width for width in widths if width <= n)


def coarse_widths(n: int) -> list[int]:
    """List the widths of ``n`` on a coarse grid, ascending."""
    if n < 2 * _FEW:
        return sorted({1, *(max(1, round(n * k / 4)) for k in (1, 2, 3, 4))})
    return sorted({1, *(max(STEP, STEP * round(n * k / 4 / STEP)) for k in (1, 2, 3)), n})


def points_of(full: Sequence[int], *, fine: bool = True) -> list[Point]:
    """List where a piece is measured whose leading widths are at most ``full``, the whole piece first."""
    whole = tuple(full)
    points = {whole: None}
    if len(full) > 1:
        for first in coarse_widths(full[0]):
            points |= dict.fromkeys((first, second, *whole[2:]) for second in coarse_widths(full[1]))
    for at, n in enumerate(full):
        points |= dict.fromkeys((*whole[:at], w, *whole[at + 1 :]) for w in line_widths(n, fine=fine))
    return list(points)


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A function of one length, linear between where it is known and constant beyond."""

    lengths: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, length: float) -> float:
        i = bisect.bisect_left(self.lengths, length)
        if i == len(self.lengths):
            return self.values[-1]
        if i == 0 or self.lengths[i] == length:
            return self.values[i]
        low, high = self.lengths[i - 1], self.lengths[i]
        share = (length - low) / (high - low)
        return self.values[i - 1] + share * (self.values[i] - self.values[i - 1])

    @classmethod
    def of(cls, pairs: Mapping[float, float]) -> Line:
        """Make the function that has these values."""
        lengths = sorted(pairs)
        return cls(tuple(lengths), tuple(pairs[length] for length in lengths))


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The seconds of a piece at lengths in its directions.

    ``lines``: in each direction alone, all else whole. ``grid``: over the first two, the lengths in the first
    with a line over the second for each.
    """

    whole: float
    full: tuple[float, ...]
    lines: tuple[Line, ...]
    grid: tuple[tuple[float, ...], tuple[Line, ...]] | None

    def __call__(self, lengths: Sequence[float]) -> float:
        if not self.lines:
            return self.whole
        if self.grid is None:
            return self.lines[0](lengths[0])
        first, second = lengths[0], lengths[1]
        seconds = self._on_grid(first, second)
        seconds *= self.lines[0](first) / self._on_grid(first, self.full[1])
        seconds *= self.lines[1](second) / self._on_grid(self.full[0], second)
        for line, length in zip(self.lines[2:], lengths[2:], strict=True):
            seconds += line(length) - self.whole
        return max(seconds, 0.0)

    def _on_grid(self, first: float, second: float) -> float:
        assert self.grid is not None
        lengths, rows = self.grid
        i = bisect.bisect_left(lengths, first)
        if i == len(lengths):
            return rows[-1](second)
        if i == 0 or lengths[i] == first:
            return rows[i](second)
        share = (first - lengths[i - 1]) / (lengths[i] - lengths[i - 1])
        below = rows[i - 1](second)
        return below + share * (rows[i](second) - below)

    @classmethod
    def of(
        cls, full: Point, lengths: Mapping[tuple[int, int], float], seconds: Mapping[Point, float]
    ) -> Surface:
        """Make the surface of what was measured at points; ``lengths`` by (direction, leading width)."""
        whole = seconds[full]
        lines = []
        for at in range(len(full)):
            along = {
                p[at]: s for p, s in seconds.items() if p[:at] + p[at + 1 :] == full[:at] + full[at + 1 :]
            }
            lines.append(Line.of({lengths[at, width]: s for width, s in along.items()}))
        grid = None
        if len(full) > 1:
            rows: dict[float, Line] = {}
            for first in coarse_widths(full[0]):
                row = {}
                for second in coarse_widths(full[1]):
                    point = (first, second, *full[2:])
                    row[lengths[1, second]] = seconds[point]
                rows[lengths[0, first]] = Line.of(row)
            grid = (tuple(sorted(rows)), tuple(rows[length] for length in sorted(rows)))
        ends = tuple(lengths[at, n] for at, n in enumerate(full))
        return cls(whole, ends, tuple(lines), grid)
