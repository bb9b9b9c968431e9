"""Products of axis lengths as functions of the widths of groups, many at once in a few array operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from slimfast.arrays import FloatArray, IntArray
from slimfast.graph.channel_graph import Axis

Terms: TypeAlias = tuple[tuple[tuple[int, ...], float], ...]


class AxisNumbers:
    """The distinct axes of a graph, numbered; number 0 is an axis of length 1."""

    def __init__(self, groups: Mapping[str, int]) -> None:
        self._groups = groups
        self._numbers: dict[Terms, int] = {(((), 1),): 0}
        self._say: list[set[int]] = [set()]
        self._seen: dict[int, int] = {}

    def number(self, axis: Axis) -> int:
        """Number an axis; two of the same polynomial have the same."""
        # An axis object stands in many shapes, and its terms take time: they are found once.
        if id(axis) not in self._seen:
            terms = {tuple(self._groups[name] for name in names): n for names, n in axis.terms().items()}
            key = tuple(sorted(terms.items()))
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                self._say.append({group for names, _ in key for group in names})
            self._seen[id(axis)] = self._numbers[key]
        return self._seen[id(axis)]

    def groups(self, number: int) -> set[int]:
        """List the groups that have a say in the axis of that number."""
        return self._say[number]

    @property
    def count(self) -> int:
        """How many axes there are."""
        return len(self._numbers)

    def compiled(self) -> Lengths:
        """Make the lengths of all axes a function of the kept shares of the groups."""
        return Lengths(list(self._numbers), len(self._groups))


class Lengths:
    """Lengths (a,) of the numbered axes from the kept share (g,) of each group."""

    def __init__(self, axes: Sequence[Terms], groups: int) -> None:
        terms = [(number, names, n) for number, axis in enumerate(axes) for names, n in axis]
        deepest = max(len(names) for _, names, _ in terms)
        # Short terms are filled up with a group of which everything is kept.
        self._factors = np.array(
            [[*names, *[groups] * (deepest - len(names))] for _, names, _ in terms], dtype=np.int64
        )
        self._counts = np.array([n for _, _, n in terms], dtype=np.float64)
        self._axis = np.array([number for number, _, _ in terms], dtype=np.int64)
        self._number = len(axes)

    def __call__(self, shares: FloatArray) -> FloatArray:
        kept = np.append(shares, 1.0)
        terms = self._counts * kept[self._factors].prod(axis=1)
        # What is left over is the rounding of w / n: the indices of an axis are whole.
        lengths: FloatArray = np.rint(np.bincount(self._axis, weights=terms, minlength=self._number))
        return lengths


class Products:
    """Products of constants and axis lengths, one for each item."""

    def __init__(self, axes: AxisNumbers, items: Sequence[Iterable[int | Axis]]) -> None:
        constants, numbers = [], []
        for item in items:
            factors = list(item)
            constants.append(math.prod(f for f in factors if not isinstance(f, Axis)))
            numbers.append([axes.number(f) for f in factors if isinstance(f, Axis)])
        most = max((len(row) for row in numbers), default=0)
        self._constants = np.array(constants, dtype=np.float64)
        self._numbers = np.array([row + [0] * (most - len(row)) for row in numbers], dtype=np.int64)
        self._numbers = self._numbers.reshape(len(numbers), most)
        self._of_group: dict[int, list[int]] = {}
        for i, row in enumerate(numbers):
            for group in set().union(*(axes.groups(number) for number in row)):
                self._of_group.setdefault(group, []).append(i)

    def values(self, lengths: FloatArray) -> FloatArray:
        """Compute the value of each item."""
        values: FloatArray = self._constants * lengths[self._numbers].prod(axis=1)
        return values

    def of_group(self, group: int) -> IntArray:
        """List the items in which a group has a say."""
        return np.array(self._of_group.get(group, []), dtype=np.int64)
