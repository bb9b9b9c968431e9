"""Align axes: make index i of one survive together with index i of the other, or a grid of indices a
rectangle.

Every operation takes whole arrays: there is no Python loop over indices.
"""

from __future__ import annotations

import numpy as np

from slimfast.graph.propagation import label_matrices as matrices
from slimfast.graph.propagation.label_classes import NO_REASON, LabelClasses
from slimfast.graph.propagation.label_matrices import Labels, Mask, everywhere, same, some


class Partition(LabelClasses):
    """Joins, splits and freezes classes of labels until the axes that they run along agree."""

    def join_rows(self, a: Labels, b: Labels, reason: int) -> None:
        """Make index i of two label matrices (n, ka) and (n, kb) survive together, for every i.

        A label that meets no label is frozen for ``reason``; one label that meets a pair is split into that
        pair; sets of one size are matched in the order that joins fewest classes; whatever does not fit
        becomes a single class.
        """
        while True:
            left, right = self.find(a), self.find(b)
            if left.shape == right.shape and same(left, right):
                return
            left, right = self._resolved(left), self._resolved(right)
            if left.shape[1] == right.shape[1] == 1 and everywhere(left) and everywhere(right):
                self._join(left[:, 0], right[:, 0])
                return
            if self._expand_new(left, right) or self._expand_new(right, left):
                return
            left, right = matrices.remove_common(left, right)
            # a frozen label is never removed: rows that differ in frozen labels only are equal
            differ = self._has_removable_label(left) | self._has_removable_label(right)
            if not some(differ):
                return
            rows = matrices.like_first(left, right, differ)
            left, right = left[rows], right[rows]
            if (left[0] > 0).sum() == (right[0] > 0).sum():
                self._pair(left, right)
            else:
                self._join_unequal(left, right, reason)

    def _expand_new(self, few: Labels, many: Labels) -> bool:
        """Split the labels ``few`` into the pairs ``many`` where that is all there is to do; say whether it
        was."""
        if few.shape[1] != 1 or many.shape[1] != 2 or not (everywhere(few) and everywhere(many)):
            return False
        if some(self.frozen(few)) or some(self.frozen(many)):
            return False
        place, labels, number = self._scratch, few[:, 0], np.arange(1, len(few) + 1)
        place[labels] = number
        fits = same(place.take(labels), number) and not some(place.take(many))
        place[labels] = 0
        if not fits:
            return False
        self.expand(labels, many[:, 0], many[:, 1])
        return True

    def _has_removable_label(self, labels: Labels) -> Mask:
        """Say which rows have a label that can be removed."""
        return matrices.any_in_row((labels > 0) & ~self.frozen(labels))

    def _pair(self, left: Labels, right: Labels) -> None:
        """Join sets of one size label by label."""
        left, right = left[:, left[0] > 0], right[:, right[0] > 0]
        for c, d in enumerate(matrices.fewest_pairs(left, right)):
            self.union(left[:, c], right[:, d])

    def _join_unequal(self, left: Labels, right: Labels, reason: int) -> None:
        """Join, split or freeze something in the rows whose sets differ in size."""
        reason = self._earliest(left, right, reason)
        left, right = self._without_frozen(left), self._without_frozen(right)
        rows = matrices.like_first(
            left, right, matrices.any_in_row(left > 0) | matrices.any_in_row(right > 0)
        )
        left, right = left[rows], right[rows]
        sizes = int((left[0] > 0).sum()), int((right[0] > 0).sum())
        few, many = (left, right) if sizes[0] <= sizes[1] else (right, left)
        if min(sizes) == 0:
            self.freeze_classes(many, reason)
        elif sizes[0] == sizes[1]:
            self._pair(left, right)
        elif min(sizes) == 1 and not some(np.isin(few[:, 0], many)):
            labels, at = np.unique(few[:, 0], return_index=True)
            self._expand_all(labels, many[at][:, : max(sizes)])
        else:
            self._join_each_row(few, many)

    def _earliest(self, left: Labels, right: Labels, reason: int) -> int:
        """Find the earliest reason why any of these labels is frozen; ``reason`` where none is."""
        known = min(self._frozen[left].min(initial=NO_REASON), self._frozen[right].min(initial=NO_REASON))
        return reason if known == NO_REASON else int(known)

    def _without_frozen(self, labels: Labels) -> Labels:
        """Clear the labels that can never be removed."""
        return matrices.tidy(np.where(self.frozen(labels), 0, labels))

    def _join_each_row(self, left: Labels, right: Labels) -> None:
        """Join all labels of a row, on both sides, into one class."""
        both = np.concatenate([left, right], axis=1)
        first = both.max(axis=1, keepdims=True)
        everything = np.where(both > 0, both, first)
        for c in range(1, everything.shape[1]):
            self.union(everything[:, 0], everything[:, c])

    def split_grid(self, labels: Labels, outer: int, inner: int, reason: int) -> tuple[Labels, Labels]:
        """Divide an axis (outer * inner, k) into the label matrices of the axes (outer,) and (inner,).

        A column that is constant along one of the two belongs to the other. Anything else is a grid of
        labels, each of which is split into a fresh outer and a fresh inner label, so that what survives
        stays a rectangle.
        """
        grid = self.resolve(labels).reshape(outer, inner, -1)
        rows: list[Labels] = []
        columns: list[Labels] = []
        for c in range(grid.shape[2]):
            plane = grid[:, :, c]
            if not some(plane):
                continue
            if everywhere(plane == plane[:, :1]):
                rows.append(plane[:, 0])
            elif everywhere(plane == plane[:1]):
                columns.append(plane[0])
            else:
                a, b = self._factor(plane, reason)
                rows.append(a)
                columns.append(b)
        return matrices.join_columns(rows, outer), matrices.join_columns(columns, inner)

    def _factor(self, plane: Labels, reason: int) -> tuple[Labels, Labels]:
        """Split a grid (a, b) of representatives (0: never removed) into fresh outer (a,) and inner (b,)
        labels."""
        a, b = plane.shape
        outer, inner = self.fresh(a), self.fresh(b)
        fixed = plane == 0
        if some(fixed):
            self.freeze_classes(np.concatenate([outer[fixed.any(1)], inner[fixed.any(0)]])[:, None], reason)
        flat = plane.ravel()
        labels, at, inverse = np.unique(flat, return_index=True, return_inverse=True)
        rows, columns = np.divmod(np.arange(a * b), b)
        if len(labels) < a * b:
            # a label at several places has one outer and one inner label, shared by those places
            several = flat > 0
            self.union(outer[rows][several], outer[rows[at]][inverse][several])
            self.union(inner[columns][several], inner[columns[at]][inverse][several])
        real = labels > 0
        self.expand(labels[real], outer[rows[at]][real], inner[columns[at]][real])
        return outer, inner
