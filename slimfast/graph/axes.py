"""Axes of tensors, described by the units of groups that stand along them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from slimfast.arrays import BoolArray, IntArray


def alive_units(keep: IntArray) -> BoolArray:
    """Tabulate which of a group's units are kept, by their number; the last entry stands for all beyond.

    ``keep``: the kept units, sorted.
    """
    table = np.zeros(int(keep[-1]) + 2 if len(keep) else 1, dtype=bool)
    table[np.asarray(keep)] = True
    return table


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where units of a group stand along an axis of ``length`` indices: ``units[k]`` at ``indices[k]``.

    The indices are sorted; those not among them are none of the group's. A group of a few units costs little
    on an axis of many indices.
    """

    length: int
    indices: IntArray
    units: IntArray

    @classmethod
    def of(cls, units: IntArray) -> Places:
        """Describe the unit of each index, -1 for none."""
        indices = np.flatnonzero(units >= 0)
        return cls(len(units), indices, units if len(indices) == len(units) else units[indices])

    def along(self) -> IntArray:
        """List the unit of each index, -1 for none."""
        if len(self.units) == self.length:
            return self.units
        units: IntArray = np.full(self.length, -1, dtype=np.int64)
        units[self.indices] = self.units
        return units


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One axis of a tensor: which unit of which group each of its indices belongs to.

    ``places`` holds (group name, :class:`Places`) pairs; ``parts`` is the same as (group name, units) pairs,
    where ``units`` (length,) has the unit of each index in that group, or -1 where the group has no say. An
    index survives when every group that has a say keeps its unit: an index of a fused head axis belongs to a
    head *and* to a position inside the head. No places: the axis never changes.
    """

    length: int
    places: tuple[tuple[str, Places], ...] = ()

    @classmethod
    def of(cls, length: int, parts: Iterable[tuple[str, IntArray]]) -> Axis:
        """Make an axis of (group name, units) pairs; those without a say are left out."""
        found = ((group, Places.of(units)) for group, units in parts)
        return cls(length, tuple((group, places) for group, places in found if len(places.units)))

    @property
    def parts(self) -> tuple[tuple[str, IntArray], ...]:
        """The (group name, units) pairs."""
        return tuple((group, places.along()) for group, places in self.places)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have a say, one of them several times where an index has several of its units."""
        return tuple(group for group, _ in self.places)

    def kept(self, keeps: Mapping[str, IntArray]) -> IntArray:
        """Find the indices that are left when each group keeps these units; one not named keeps all."""
        return self.alive({group: alive_units(keeps[group]) for group, _ in self.places if group in keeps})

    def alive(self, masks: Mapping[str, BoolArray]) -> IntArray:
        """Find the indices that are left, from the :func:`alive_units` of each group."""
        alive = np.ones(self.length, dtype=bool)
        for group, places in self.places:
            if (mask := masks.get(group)) is not None:
                alive[places.indices] &= mask[np.minimum(places.units, len(mask) - 1)]
        return np.flatnonzero(alive)

    def terms(self) -> dict[tuple[str, ...], float]:
        """Count the indices by the groups that have a say in them.

        This is the polynomial of the axis's length in widths: with w_g of n_g units kept, the length is the
        sum over terms of count * prod(w_g / n_g); exact where every unit of a group has equally many indices,
        which holds for the axes of parameters. Two units of one group, as in a product of channels with
        channels, are kept in w (w - 1) / (n (n - 1)) of all pairs, which is written as terms of w / n.
        """
        if not self.places:
            return {(): self.length}
        say = np.zeros(self.length, dtype=np.int64)
        for _, places in self.places:
            say[places.indices] += 1
        counts: dict[tuple[str, ...], float] = {}
        if free := int(np.count_nonzero(say == 0)):
            counts[()] = free
        index = np.concatenate([places.indices for _, places in self.places])
        number = np.repeat(np.arange(len(self.places)), [len(places.units) for _, places in self.places])
        # the numbers of the places that each index has, one index after the other
        order = np.argsort(index, kind="stable")
        numbers, indices = number[order], index[order]
        several = say[say > 0]
        starts = np.cumsum(several) - several
        for many in np.unique(several).tolist():
            rows = numbers[starts[several == many][:, None] + np.arange(many)]
            for row, count in zip(*np.unique(rows, axis=0, return_counts=True), strict=True):
                groups = tuple(self.places[place][0] for place in row.tolist())
                if len(set(groups)) < len(groups):
                    own = indices[starts[several == many]][(rows == row).all(axis=1)]
                    self._add_pairs(counts, row.tolist(), own)
                else:
                    counts[groups] = counts.get(groups, 0) + int(count)
        return {groups: count for groups, count in counts.items() if count}

    def _add_pairs(self, counts: dict[tuple[str, ...], float], row: list[int], indices: IntArray) -> None:
        """Add the terms of indices that belong to several units of one group, by the places ``row``."""
        of_group: dict[str, list[IntArray]] = {}
        for place in row:
            group, places = self.places[place]
            of_group.setdefault(group, []).append(places.along()[indices])
        distinct = np.stack(
            [
                1 + (np.diff(np.sort(np.stack(units), axis=0), axis=0) != 0).sum(axis=0)
                for units in of_group.values()
            ]
        )
        sizes = {
            name: 1 + max(int(p.units.max()) for own, p in self.places if own == name) for name in of_group
        }
        for many, count in zip(*np.unique(distinct.T, axis=0, return_counts=True), strict=True):
            terms: dict[tuple[str, ...], float] = {(): float(count)}
            for group, k in zip(of_group, many.tolist(), strict=True):
                for i in range(k):
                    # of n - i units that are left, w - i are kept
                    left, more = sizes[group] - i, dict[tuple[str, ...], float]()
                    for names, c in terms.items():
                        one = tuple(sorted((*names, group)))
                        more[one] = more.get(one, 0.0) + c * sizes[group] / left
                        more[names] = more.get(names, 0.0) - c * i / left
                    terms = more
            for names, c in terms.items():
                if abs(c) > 1e-9:
                    counts[names] = counts.get(names, 0) + c
