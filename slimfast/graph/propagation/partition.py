"""Labels of tensor indices: a union-find whose classes can be split into an outer and an inner label.

An axis of length n is a label matrix (n, k): index i survives a cut when each of its labels does; 0 says "no
label". Every operation takes whole arrays: there is no Python loop over indices.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from slimfast.graph.propagation import label_matrices as matrices
from slimfast.graph.propagation.label_matrices import Labels, Mark, Mask, same, some

_NONE = np.iinfo(np.int64).max

Array = TypeVar("Array", Labels, Mask)


class Partition:
    """The classes of labels, with what is known of each: its split, its marks, why it is frozen or inexact.

    Reasons are small integers that the caller numbers in the order it finds them; the earliest wins.
    """

    def __init__(self) -> None:
        self._size = 1
        self._has_splits = False
        # of every label that there is room for
        self._parent = np.arange(1024, dtype=np.int64)
        self._outer = np.zeros(1024, dtype=np.int64)
        self._inner = np.zeros(1024, dtype=np.int64)
        self._marks = np.zeros(1024, dtype=np.int64)
        self._frozen = np.full(1024, _NONE, dtype=np.int64)
        self._inexact = np.full(1024, _NONE, dtype=np.int64)
        # which classes have marks or are frozen or inexact
        self._told = np.zeros(1024, dtype=bool)
        # zero but while a method uses it, which then clears what it wrote
        self._scratch = np.zeros(1024, dtype=np.int64)

    @property
    def size(self) -> int:
        """Labels are smaller than this."""
        return self._size

    def fresh(self, n: int) -> Labels:
        """n new labels, each its own class: (n,)."""
        start, end = self._size, self._size + n
        if end > len(self._parent):
            room = max(end, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), room, dtype=np.int64)])
            self._outer, self._inner, self._marks, self._scratch = (
                _extended(a, room, 0) for a in (self._outer, self._inner, self._marks, self._scratch)
            )
            self._frozen, self._inexact = (_extended(a, room, _NONE) for a in (self._frozen, self._inexact))
            self._told = _extended(self._told, room, 0)
        self._size = end
        return np.arange(start, end, dtype=np.int64)

    def find(self, labels: Labels) -> Labels:
        """The representative of each label's class, same shape."""
        root: Labels = self._parent.take(labels)
        further = self._parent.take(root)
        if not same(further, root):
            while not same(further, root):
                root, further = further, self._parent.take(further)
            self._parent[labels] = root
        return root

    def resolve(self, labels: Labels) -> Labels:
        """The label matrix (n, k') in terms of representatives that are not split; duplicates in a row
        become 0.

        The order of a row's labels (outer before inner) is kept and zeros stand last.
        """
        return self._resolved(self.find(labels))

    def _resolved(self, root: Labels) -> Labels:
        """:meth:`resolve` of representatives."""
        while self._has_splits:
            outer = self._outer.take(root)
            if not some(outer):
                break
            inner = self._inner.take(root)
            columns = []
            for c in range(root.shape[1]):
                if some(outer[:, c]):
                    columns.append(np.where(outer[:, c] > 0, outer[:, c], root[:, c]))
                    columns.append(inner[:, c])
                else:
                    columns.append(root[:, c])
            root = self.find(matrices.join_columns(columns, len(root)))
        return matrices.tidy(root)

    def whole(self) -> Labels:
        """The representative of every label's class (size,), -1 where the class is split."""
        roots = self.find(np.arange(self._size))
        return np.where(self._outer.take(roots) > 0, -1, roots)

    def frozen(self, roots: Labels) -> Mask:
        """Which of these representatives can never be removed."""
        found: Mask = self._frozen.take(roots) != _NONE
        return found

    def frozen_reasons(self, roots: Labels) -> Labels:
        """The reason each representative is frozen for, 0 where it is not."""
        reasons: Labels = self._frozen.take(roots)
        return np.where(reasons == _NONE, 0, reasons)

    def inexact_reason(self, roots: Labels) -> int:
        """The earliest reason any of these representatives is inexact for, 0 where none is."""
        reason = int(self._inexact[roots].min(initial=_NONE))
        return 0 if reason == _NONE else reason

    def marks(self, roots: Labels) -> Labels:
        """The marks of each representative."""
        found: Labels = self._marks[roots]
        return found

    def freeze_classes(self, labels: Labels, reason: int) -> None:
        """Nothing in this label matrix may be removed."""
        roots = self._classes(labels)
        self._frozen[roots] = np.minimum(self._frozen[roots], reason)
        self._told[roots] = True

    def make_inexact(self, labels: Labels, reason: int) -> None:
        """Removing any of these changes what the rest computes."""
        roots = self._classes(labels)
        self._inexact[roots] = np.minimum(self._inexact[roots], reason)
        self._told[roots] = True

    def add_mark(self, labels: Labels, mark: Mark) -> None:
        """Add a mark to the class of every label in this label matrix."""
        roots = self._classes(labels)
        self._marks[roots] |= mark
        self._told[roots] = True

    def _classes(self, labels: Labels) -> Labels:
        """The representatives in a label matrix, each at least once."""
        roots = self.resolve(labels).ravel()
        return roots[roots > 0]

    def meet(self, a: Labels, b: Labels) -> bool:
        """Whether two label matrices have a class in common."""
        left = self.resolve(a)
        self._scratch[left] = 1
        self._scratch[0] = 0
        met = some(self._scratch.take(self.resolve(b)))
        self._scratch[left] = 0
        return met

    def union(self, a: Labels, b: Labels) -> None:
        """Join the classes of a[i] and b[i] (representatives that are not split), for every i."""
        self._join(self.find(a), self.find(b))

    def _join(self, a: Labels, b: Labels) -> None:
        """:meth:`union` of representatives."""
        while True:
            differ = a != b
            if not some(differ):
                return
            if not _everywhere(differ):
                a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low
            alone = same(self._parent.take(high), low)
            if not alone:
                # a representative that appears several times takes the smallest partner now, the others next
                # round
                np.minimum.at(self._parent, high, low)
            self._inherit(high, high, ~0)
            if alone:
                return
            a, b = self.find(a), self.find(b)

    def _inherit(self, heirs: Labels, ancestors: Labels, kept_marks: int) -> None:
        """The classes that heirs[i] are in take over what was known of ancestors[i]."""
        told = self._told.take(ancestors)
        if not some(told):
            return
        roots = self.find(heirs)
        self._told[roots[told]] = True
        marks, frozen, inexact = (a.take(ancestors) for a in (self._marks, self._frozen, self._inexact))
        if some(marks):
            np.bitwise_or.at(self._marks, roots, marks & kept_marks)
        if frozen.min(initial=_NONE) < _NONE:
            np.minimum.at(self._frozen, roots, frozen)
        if inexact.min(initial=_NONE) < _NONE:
            np.minimum.at(self._inexact, roots, inexact)

    def expand(self, labels: Labels, outer: Labels, inner: Labels) -> None:
        """Split the classes of distinct representatives labels[i] into the pair (outer[i], inner[i])."""
        self._has_splits = True
        self._outer[labels] = outer
        self._inner[labels] = inner
        self._inherit(outer, labels, Mark.ADDED)
        self._inherit(inner, labels, Mark.ADDED)

    def _expand_all(self, labels: Labels, parts: Labels) -> None:
        """Split the classes of distinct representatives labels[i] into all of parts[i, :]."""
        while parts.shape[1] > 2:
            rest = self.fresh(len(labels))
            self.expand(labels, parts[:, 0], rest)
            labels, parts = rest, parts[:, 1:]
        self.expand(labels, parts[:, 0], parts[:, 1])

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
            if left.shape[1] == right.shape[1] == 1 and _everywhere(left) and _everywhere(right):
                self._join(left[:, 0], right[:, 0])
                return
            if self._expand_new(left, right) or self._expand_new(right, left):
                return
            left, right = matrices.remove_common(left, right)
            # a frozen label says nothing: rows that differ in frozen labels only are equal
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
        """Whether ``few`` was one label on each index, no two alike and none among the pairs, and is split
        now."""
        if few.shape[1] != 1 or many.shape[1] != 2 or not (_everywhere(few) and _everywhere(many)):
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
        """Which rows have a label that can be removed."""
        return matrices.any_in_row((labels > 0) & ~self.frozen(labels))

    def _pair(self, left: Labels, right: Labels) -> None:
        left, right = left[:, left[0] > 0], right[:, right[0] > 0]
        for c, d in enumerate(matrices.fewest_pairs(left, right)):
            self.union(left[:, c], right[:, d])

    def _join_unequal(self, left: Labels, right: Labels, reason: int) -> None:
        """One round for rows whose sets differ in size; every call joins, splits or freezes something."""
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
        known = min(self._frozen[left].min(initial=_NONE), self._frozen[right].min(initial=_NONE))
        return reason if known == _NONE else int(known)

    def _without_frozen(self, labels: Labels) -> Labels:
        return matrices.tidy(np.where(self.frozen(labels), 0, labels))

    def _join_each_row(self, left: Labels, right: Labels) -> None:
        both = np.concatenate([left, right], axis=1)
        first = both.max(axis=1, keepdims=True)
        everything = np.where(both > 0, both, first)
        for c in range(1, everything.shape[1]):
            self.union(everything[:, 0], everything[:, c])

    def split_grid(self, labels: Labels, outer: int, inner: int, reason: int) -> tuple[Labels, Labels]:
        """Label matrices of the axes (outer,) and (inner,) that an axis (outer * inner, k) is reshaped to.

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
            if _everywhere(plane == plane[:, :1]):
                rows.append(plane[:, 0])
            elif _everywhere(plane == plane[:1]):
                columns.append(plane[0])
            else:
                a, b = self._factor(plane, reason)
                rows.append(a)
                columns.append(b)
        return matrices.join_columns(rows, outer), matrices.join_columns(columns, inner)

    def _factor(self, plane: Labels, reason: int) -> tuple[Labels, Labels]:
        """Fresh outer (a,) and inner (b,) labels for a grid (a, b) of representatives (0: never removed)."""
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


def _extended(array: Array, room: int, fill: int) -> Array:
    return np.concatenate([array, np.full(room - len(array), fill, dtype=array.dtype)])


def _everywhere(array: Labels | Mask) -> bool:
    """Whether nothing in an array is zero."""
    return bool(np.count_nonzero(array) == array.size)
