"""Describe one axis of a tensor: the labels of its indices, or the reason why none of them can be removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from slimfast.graph.propagation.label_matrices import Labels
from slimfast.graph.propagation.reasons import FIXED_LENGTH, Cause

__all__ = ["FIXED", "Axes", "AxisLabels", "first_free", "fixed_axis"]


@dataclass(frozen=True, slots=True, eq=False)
class AxisLabels:
    """One axis of a tensor: row i of ``labels`` (length, k) has the labels of index i, 0 for none.

    ``reason``: why no index can ever be removed, and then there are no labels (k = 0); None where some may
    be. ``mixed``: a reshape made it of an axis with labels and one without, whose length may be the input's.
    """

    labels: Labels
    reason: Cause | None = None
    mixed: bool = False

    @property
    def fixed(self) -> bool:
        """Say whether no index of the axis can ever be removed."""
        return self.reason is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> AxisLabels:
        """Take a part of the axis."""
        return AxisLabels(self.labels[part], self.reason, self.mixed)

    def repeated(self, times: int) -> AxisLabels:
        """Put the axis ``times`` times one after the other."""
        return AxisLabels(np.tile(self.labels, (times, 1)), self.reason, self.mixed)

    def of_length(self, length: int) -> AxisLabels:
        """Give a fixed axis another length; the reason stays."""
        return self if len(self.labels) == length else fixed_axis(self.reason or FIXED_LENGTH, length)


# The axes of a tensor.
Axes: TypeAlias = list[AxisLabels]


def fixed_axis(cause: Cause, length: int = 1) -> AxisLabels:
    """Make an axis that never changes."""
    return AxisLabels(np.zeros((length, 0), dtype=np.int64), cause)


# Fixed for no reason worth telling. What a rule returns as fixed need not have the right length.
FIXED = fixed_axis(FIXED_LENGTH)


def first_free(axes: Iterable[AxisLabels], default: AxisLabels) -> AxisLabels:
    """Find the first axis that is not fixed; the default where all are."""
    return next((axis for axis in axes if axis.reason is None), default)
