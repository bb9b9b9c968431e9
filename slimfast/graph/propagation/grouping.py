"""Make channel groups of labels: a unit is a class of labels, a group the units found in the same places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slimfast.arrays import IntArray
from slimfast.graph.channel_graph import Axis, ChannelGroup, Constant, Frozen, Member, Operation, Places, Role
from slimfast.graph.group_names import GroupNames
from slimfast.graph.propagation.axis_labels import AxisLabels
from slimfast.graph.propagation.label_matrices import Hashes, Labels, Mark, Mask, mix, some, tidy
from slimfast.graph.propagation.network_labels import NetworkLabels
from slimfast.graph.propagation.reasons import Cause, Reason
from slimfast.graph.propagation.traced import TracedCall

# Why units that nothing freezes are in no group.
_WHY = (Reason.NO_PRODUCER, Reason.ONE_UNIT, Reason.EXCLUDED, Reason.SCALE)
# Why a side of a grid stays that is no width: query, key and value, the layers of a recurrent state.
_PARTS = (Reason.FIXED_LENGTH, Reason.INDEX_BY_INDEX, Reason.ONE_INDEX, Reason.REPEATS)


@dataclass(frozen=True, slots=True, eq=False)
class _Draft:
    """A group without its members: unit u is the class of labels ``roots[u]``."""

    name: str
    kind: str
    roots: Labels
    inexact: str | None


class Grouping:
    """Reads the groups, the axes and the frozen parts off labels that have been followed to the end."""

    def __init__(
        self, labels: NetworkLabels, include: Sequence[str] | None, exclude: Sequence[str] | None
    ) -> None:
        self._labels = labels
        self._partition = labels.partition
        self._tables: dict[tuple[str, int], Labels] = {}
        self._resolved: dict[AxisLabels, Labels] = {}
        self._size = self._partition.size
        roots = self._partition.whole()
        for name, value in labels.tensors.items():
            for dim, axis in enumerate(value.axes):
                if not axis.fixed:
                    table = self._tables[name, dim] = self._table(axis.labels, roots)
                    self._resolved[axis] = table
        self._group_of: IntArray = np.full(self._size, -1, dtype=np.int64)
        self._unit_of: IntArray = np.full(self._size, -1, dtype=np.int64)
        self._why: IntArray = np.zeros(self._size, dtype=np.int64)
        self._axes: dict[tuple[int, bytes], Axis] = {}
        self._axis_of_labels: dict[AxisLabels, Axis] = {}
        self._axis_of_length: dict[int, Axis] = {}
        self._drafts = self._find(include, exclude)
        # Of each label its class where that is in a group, 0 where it is in none (what is frozen is in none),
        # -1 where it was split.
        self._named = np.where((roots < 0) | (self._group_of.take(roots) >= 0), roots, 0)

    def _table(self, labels: Labels, roots: Labels) -> Labels:
        """Resolve the labels of an axis to their classes; ``roots`` (size,) is what :meth:`Partition.whole`
        returns."""
        if labels.shape[1] == 1:
            table = roots.take(labels)
            if not some(table < 0):
                return tidy(table)
        return self._partition.resolve(labels)

    def _find(self, include: Sequence[str] | None, exclude: Sequence[str] | None) -> list[_Draft]:
        """Collect the units of each group, ordered by the first weight that produces them."""
        signature, joined = self._signatures()
        order = []
        seen = np.zeros(self._size, dtype=bool)
        for (name, dim), role in self._labels.roles.items():
            if role == "producer" and (name, dim) in self._tables:
                roots = self._tables[name, dim].ravel()
                roots = roots[(roots > 0) & ~seen.take(roots)]
                if not len(roots):
                    continue
                _, first = np.unique(roots, return_index=True)
                fresh = roots if len(first) == len(roots) else roots[np.sort(first)]
                seen[fresh] = True
                signed = signature.take(fresh)
                if not some(signed != signed[0]):
                    order.append(((name, dim), fresh))
                    continue
                codes, at = np.unique(signed, return_index=True)
                order += [((name, dim), fresh[signed == code]) for code in codes[np.argsort(at)]]
        drafts: list[_Draft] = []
        used: Counter[str] = Counter()
        for key, roots in order:
            free = roots[~self._partition.frozen(roots)]
            if len(free) < 2:
                self._why[free] = 1
                continue
            marks = Mark(int(self._partition.marks(free[:1])[0]))
            if Mark.SCALED in marks and Mark.ADDED not in marks:
                # positions inside a head alone: with fewer of them the others would see another softmax
                self._why[free] = 3
                continue
            kind = _kind(marks, joined=bool(joined[free[0]]))
            name = _name(key[0], kind)
            used[name] += 1
            if used[name] > 1:
                name = f"{name}#{used[name]}"
            reason = self._partition.inexact_reason(free)
            self._group_of[free] = len(drafts)
            self._unit_of[free] = np.arange(len(free))
            inexact = str(self._labels.causes[reason]) if reason else None
            drafts.append(_Draft(name, kind, free, inexact))
        return drafts if include is None and not exclude else self._asked_for(drafts, include, exclude)

    def _asked_for(
        self, drafts: list[_Draft], include: Sequence[str] | None, exclude: Sequence[str] | None
    ) -> list[_Draft]:
        """Choose the groups that are included and not excluded, and number their units again."""
        names = self._names(drafts)
        included, excluded = (
            {name for glob in globs or () for name in names.meant_by(glob, f"trace_channels: {what}")}
            for what, globs in (("include", include), ("exclude", exclude))
        )
        chosen: list[_Draft] = []
        for draft in drafts:
            if draft.name in excluded or (include is not None and draft.name not in included):
                self._why[draft.roots] = 2
                self._group_of[draft.roots] = self._unit_of[draft.roots] = -1
            else:
                self._group_of[draft.roots] = len(chosen)
                chosen.append(draft)
        return chosen

    def _names(self, drafts: list[_Draft]) -> GroupNames:
        """List what these groups can be called."""
        slices: list[tuple[str, str, Role]] = []
        for key, table in self._tables.items():
            role = self._labels.roles.get(key, "follower")
            numbers = np.unique(self._group_of.take(table[table > 0]))
            slices += [(drafts[number].name, key[0], role) for number in numbers if number >= 0]
        return GroupNames.of({draft.name: draft.kind for draft in drafts}, slices, self._labels.tied)

    def _signatures(self) -> tuple[Hashes, Mask]:
        """Hash the (tensor, dim) pairs in which each class occurs, and find which classes have several
        producers."""
        signature = np.zeros(self._size, dtype=np.uint64)
        producer = np.full(self._size, -1, dtype=np.int64)
        joined = np.zeros(self._size, dtype=bool)
        # the outer labels of an axis and the inner ones are different units, however many there are
        columns = [column for table in self._tables.values() for column in table.T]
        at = [i << 8 | c for i, table in enumerate(self._tables.values()) for c in range(table.shape[1])]
        hashes = np.repeat(mix(np.array(at, dtype=np.uint64)), [len(column) for column in columns])
        if columns:
            # the sum wraps around: it is the same in any order
            np.add.at(signature, np.concatenate(columns), hashes)
        for position, (key, table) in enumerate(self._tables.items()):
            if self._labels.roles.get(key) == "producer":
                roots = table[table > 0]
                joined[roots] |= producer[roots] >= 0
                producer[roots] = position
        return signature, joined

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Make the groups with all of their members."""
        members: list[list[Member]] = [[] for _ in self._drafts]
        number = {draft.name: g for g, draft in enumerate(self._drafts)}
        for name, dim in self._in_order():
            role = self._labels.roles.get((name, dim), "follower")
            for group, places in self.axis(self._labels.tensors[name].axes[dim]).places:
                members[number[group]].append(Member(name, dim, role, places))
        return tuple(
            ChannelGroup(draft.name, draft.kind, len(draft.roots), tuple(own), draft.inexact)
            for draft, own in zip(self._drafts, members, strict=True)
        )

    def units(self, name: str) -> Labels:
        """Return the class of labels that each unit of a group is, (units, 1)."""
        return next(draft.roots for draft in self._drafts if draft.name == name)[:, None]

    def _in_order(self) -> list[tuple[str, int]]:
        """Sort the (tensor, dim) pairs: first those with a role, in the order they were used, then the
        others."""
        with_role = [key for key in self._labels.roles if key in self._tables]
        return [*with_role, *(key for key in self._tables if key not in self._labels.roles)]

    def axis(self, axis: AxisLabels) -> Axis:
        """Describe an axis by the groups that have a say in it; equal axes are one object."""
        if axis.fixed:
            fixed = self._axis_of_length.get(len(axis))
            if fixed is None:
                fixed = self._axis_of_length[len(axis)] = self._intern(axis.labels)
            return fixed
        described = self._axis_of_labels.get(axis)
        if described is None:
            described = self._axis_of_labels[axis] = self._intern(self._roots_of(axis))
        return described

    def _roots_of(self, axis: AxisLabels) -> Labels:
        """Find the classes along an axis that are in a group; columns without any are left out."""
        if axis.labels.shape[1] == 1:
            named = self._named.take(axis.labels)
            if not some(named < 0):
                return named if some(named) else named[:, :0]
        resolved = self._resolved.get(axis)
        roots = self._partition.resolve(axis.labels) if resolved is None else resolved
        roots = np.where(self._group_of.take(roots) >= 0, roots, 0)
        return roots[:, [some(column) for column in roots.T]]

    def _intern(self, roots: Labels) -> Axis:
        """Make the axis of these classes, or return the one made before."""
        length = len(roots)
        key = (length, roots.tobytes())
        if key not in self._axes:
            groups, units = self._group_of.take(roots), self._unit_of.take(roots)
            self._axes[key] = Axis(length, tuple(self._places(groups, units)))
        return self._axes[key]

    def _places(self, groups: IntArray, units: IntArray) -> Iterator[tuple[str, Places]]:
        """Sort the units (length, k) along an axis by group; what an index has several of, of one group, come
        one after the other."""
        length = len(groups)
        rows, columns = np.nonzero(groups >= 0)
        own, unit = groups[rows, columns], units[rows, columns]
        order = np.lexsort((columns, rows, own))
        own, rows, unit = own[order], rows[order], unit[order]
        first, at = np.ones(len(own), dtype=bool), np.arange(len(own))
        first[1:] = (own[1:] != own[:-1]) | (rows[1:] != rows[:-1])
        # how many units of the group the index has before this one
        before = at - np.maximum.accumulate(np.where(first, at, 0))
        if some(before):
            order = np.lexsort((rows, before, own))
            own, rows, unit, before = own[order], rows[order], unit[order], before[order]
        ends = np.flatnonzero((own[1:] != own[:-1]) | (before[1:] != before[:-1])) + 1
        for start, end in pairwise([0, *ends.tolist(), len(own)] if len(own) else [0]):
            yield self._drafts[own[start]].name, Places(length, rows[start:end], unit[start:end])

    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """Describe the axes of every parameter and buffer."""
        return {name: tuple(map(self.axis, value.axes)) for name, value in self._labels.tensors.items()}

    def operation(self, traced: TracedCall) -> Operation:
        """Describe an operation that labels were followed through."""
        return Operation(
            name=traced.call.op,
            module=traced.call.module,
            outputs=tuple(tuple(map(self.axis, axes)) for axes in traced.outputs),
            macs=tuple(f if isinstance(f, int) else self.axis(f) for f in traced.macs),
            constants=tuple(
                Constant(argument, value, axis)
                for argument, value, labels in traced.constants
                if (axis := self.axis(labels)).places
            ),
            within=traced.call.einsum,
        )

    def frozen(self) -> tuple[Frozen, ...]:
        """List every weight axis, or part of one, that no group can change, with the reason."""
        parts: dict[Frozen, None] = {}
        for name, dim in self._labels.roles:
            table = self._tables[name, dim]
            grouped = (self._group_of.take(table) >= 0).max(axis=1, initial=False)
            roots = table[~grouped]
            roots = roots[roots > 0]
            # Of a grid, as heads by their dims are, one side may be in a group and the other one stay.
            beside = table[grouped]
            found = self._causes(roots) | {
                c: None for c in self._causes(beside[beside > 0]) if c.reason not in _PARTS
            }
            parts |= {Frozen(name, dim, cause.text, cause.module): None for cause in found}
            free = roots[~self._partition.frozen(roots)]
            for code in np.unique(self._why[free]).tolist():
                parts[Frozen(name, dim, _WHY[code].text, "")] = None
        return tuple(parts)

    def _causes(self, roots: Labels) -> dict[Cause, None]:
        """Find why some of these classes are frozen, the earliest cause first."""
        codes = np.unique(self._partition.frozen_reasons(roots)).tolist()
        return {self._labels.causes[code]: None for code in codes if code}


def _kind(marks: Mark, *, joined: bool) -> str:
    """Name the kind of a group by the marks of its units."""
    if Mark.ADDED in marks and joined:
        return "residual"
    if Mark.HEAD in marks:
        return "head"
    if Mark.HEAD_DIM in marks:
        return "head_dim"
    return "block" if Mark.BLOCK in marks else "channel"


def _name(tensor: str, kind: str) -> str:
    """Name a group after the weight that produces it first."""
    path = tensor.removesuffix(".weight")
    return path if kind == "channel" else f"{path}[{kind}]"
