"""Keep classes of labels by union-find; a class can be split into an outer and an inner label.

An axis of length n is a label matrix (n, k): index i survives a cut when each of its labels does; 0 says "no
label". Every operation takes whole arrays: there is no Python loop over indices.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from slimfast.graph.propagation import label_matrices as matrices
from slimfast.graph.propagation.label_matrices import Labels, Mark, Mask, everywhere, same, some

NO_REASON = np.iinfo(np.int64).max

Array = TypeVar("Array", Labels, Mask)


class LabelClasses:
    """Classes of labels with what is known of each: its split, its marks, why it is frozen or inexact.

    Reasons are small integers that the caller numbers in the order it finds them; the earliest wins.
    """

    def __init__(self) -> None:
        self._size = 1
        self._has_splits = False
        # one entry for every label that there is room for
        self._parent = np.arange(1024, dtype=np.int64)
        self._outer = np.zeros(1024, dtype=np.int64)
        self._inner = np.zeros(1024, dtype=np.int64)
        self._marks = np.zeros(1024, dtype=np.int64)
        self._frozen = np.full(1024, NO_REASON, dtype=np.int64)
        self._inexact = np.full(1024, NO_REASON, dtype=np.int64)
        # which classes have marks or are frozen or inexact
        self._has_facts = np.zeros(1024, dtype=bool)
        # all zero except while a method uses it, which clears what it wrote
        self._scratch = np.zeros(1024, dtype=np.int64)

    @property
    def size(self) -> int:
        """Bound the labels: all are smaller than this."""
        return self._size

    def fresh(self, n: int) -> Labels:
        """Make n new labels (n,), each its own class."""
        start, end = self._size, self._size + n
        if end > len(self._parent):
            room = max(end, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), room, dtype=np.int64)])
            self._outer, self._inner, self._marks, self._scratch = (
                _extended(a, room, 0) for a in (self._outer, self._inner, self._marks, self._scratch)
            )
            self._frozen = _extended(self._frozen, room, NO_REASON)
            self._inexact = _extended(self._inexact, room, NO_REASON)
            self._has_facts = _extended(self._has_facts, room, 0)
        self._size = end
        return np.arange(start, end, dtype=np.int64)

    def find(self, labels: Labels) -> Labels:
        """Find the representative of the class of each label; the shape stays."""
        root: Labels = self._parent.take(labels)
        further = self._parent.take(root)
        if not same(further, root):
            while not same(further, root):
                root, further = further, self._parent.take(further)
            self._parent[labels] = root
        return root

    def resolve(self, labels: Labels) -> Labels:
        """Replace labels (n, k) with the representatives (n, k') of classes that are not split; duplicates in
        a row become 0.

        The order of a row's labels (outer before inner) is kept and zeros stand last.
        """
        return self._resolved(self.find(labels))

    def _resolved(self, root: Labels) -> Labels:
        """Do what :meth:`resolve` does to labels that are representatives already."""
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
        """Find the representative of every label there is (size,), -1 where its class is split."""
        roots = self.find(np.arange(self._size))
        return np.where(self._outer.take(roots) > 0, -1, roots)

    def frozen(self, roots: Labels) -> Mask:
        """Say which of these representatives can never be removed."""
        frozen: Mask = self._frozen.take(roots) != NO_REASON
        return frozen

    def frozen_reasons(self, roots: Labels) -> Labels:
        """Look up why each representative is frozen, 0 where it is not."""
        reasons: Labels = self._frozen.take(roots)
        return np.where(reasons == NO_REASON, 0, reasons)

    def inexact_reason(self, roots: Labels) -> int:
        """Look up the earliest reason why any of these representatives is inexact, 0 where none is."""
        reason = int(self._inexact[roots].min(initial=NO_REASON))
        return 0 if reason == NO_REASON else reason

    def marks(self, roots: Labels) -> Labels:
        """Look up the marks of each representative."""
        marks: Labels = self._marks[roots]
        return marks

    def freeze_classes(self, labels: Labels, reason: int) -> None:
        """Forbid the removal of anything in this label matrix."""
        roots = self.classes(labels)
        self._frozen[roots] = np.minimum(self._frozen[roots], reason)
        self._has_facts[roots] = True

    def make_inexact(self, labels: Labels, reason: int) -> None:
        """Note that removing any of these changes what is computed for the others."""
        roots = self.classes(labels)
        self._inexact[roots] = np.minimum(self._inexact[roots], reason)
        self._has_facts[roots] = True

    def add_mark(self, labels: Labels, mark: Mark) -> None:
        """Add a mark to the class of every label in this label matrix."""
        roots = self.classes(labels)
        self._marks[roots] |= mark
        self._has_facts[roots] = True

    def classes(self, labels: Labels) -> Labels:
        """List the representatives in a label matrix, each at least once."""
        if labels.size > self._size:
            # most labels stand there many times: channels laid over positions
            labels = self._distinct(labels)
        roots = self.resolve(labels).ravel()
        return roots[roots > 0]

    def _distinct(self, labels: Labels) -> Labels:
        """List the labels of a label matrix once each, as one column."""
        self._scratch[labels] = 1
        self._scratch[0] = 0
        found = np.flatnonzero(self._scratch[: self._size])
        self._scratch[found] = 0
        return found[:, None]

    def meet(self, a: Labels, b: Labels) -> bool:
        """Say whether two label matrices have a class in common."""
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
        """Do what :meth:`union` does to labels that are representatives already."""
        while True:
            differ = a != b
            if not some(differ):
                return
            if not everywhere(differ):
                a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low
            alone = same(self._parent.take(high), low)
            if not alone:
                # a representative that appears several times takes its smallest partner now and the others in
                # the next round
                np.minimum.at(self._parent, high, low)
            self._inherit(high, high, ~0)
            if alone:
                return
            a, b = self.find(a), self.find(b)

    def _inherit(self, heirs: Labels, ancestors: Labels, kept_marks: int) -> None:
        """Hand what is known of ancestors[i] down to the class that heirs[i] is in, for every i."""
        known = self._has_facts.take(ancestors)
        if not some(known):
            return
        roots = self.find(heirs)
        self._has_facts[roots[known]] = True
        marks, frozen, inexact = (a.take(ancestors) for a in (self._marks, self._frozen, self._inexact))
        if some(marks):
            np.bitwise_or.at(self._marks, roots, marks & kept_marks)
        if frozen.min(initial=NO_REASON) < NO_REASON:
            np.minimum.at(self._frozen, roots, frozen)
        if inexact.min(initial=NO_REASON) < NO_REASON:
            np.minimum.at(self._inexact, roots, inexact)

    def expand(self, labels: Labels, outer: Labels, inner: Labels) -> None:
        """Split the class of each representative labels[i], all distinct, into the pair (outer[i],
        inner[i])."""
        self._has_splits = True
        self._outer[labels] = outer
        self._inner[labels] = inner
        self._inherit(outer, labels, Mark.ADDED)
        self._inherit(inner, labels, Mark.ADDED)

    def _expand_all(self, labels: Labels, parts: Labels) -> None:
        """Split the class of each representative labels[i], all distinct, into all of parts[i, :]."""
        while parts.shape[1] > 2:
            rest = self.fresh(len(labels))
            self.expand(labels, parts[:, 0], rest)
            labels, parts = rest, parts[:, 1:]
        self.expand(labels, parts[:, 0], parts[:, 1])


def _extended(array: Array, room: int, fill: int) -> Array:
    """Lengthen an array to ``room`` entries."""
    return np.concatenate([array, np.full(room - len(array), fill, dtype=array.dtype)])
