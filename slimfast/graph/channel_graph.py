"""What a traced network is made of: channel groups, and the axes whose length follows from their widths.

All of it is frozen data. ``slimfast.graph.trace_channels`` makes it; costs, plans and pruning read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from slimfast.arrays import IntArray
from slimfast.errors import ArgumentError, did_you_mean
from slimfast.graph.axes import Axis, Places, alive_units

__all__ = ["Attribute", "Axis", "ChannelGraph", "ChannelGroup", "Constant", "Frozen", "GroupNames", "Member",
           "Operation", "Places", "Role", "alive_units"]  # fmt: skip

Role = Literal["producer", "consumer", "follower"]


@dataclass(frozen=True, slots=True)
class GroupNames:
    """What the groups of a network are called, in ``include``, ``exclude`` and ``overrides``.

    ``kinds`` has the kind of each group by its name; ``makes`` and ``reads`` the groups that each layer and
    each tensor has a part in: those whose units it computes or goes along with, and those it only reads.
    """

    kinds: Mapping[str, str]
    makes: Mapping[str, frozenset[str]]
    reads: Mapping[str, frozenset[str]]

    @classmethod
    def of(
        cls,
        kinds: Mapping[str, str],
        slices: Iterable[tuple[str, str, Role]],
        tied: Mapping[str, str] | None = None,
    ) -> GroupNames:
        """Collect the names from the (group, tensor, role) of each slice; ``tied``: further tensor names."""
        further: dict[str, list[str]] = {}
        for name, first in (tied or {}).items():
            further.setdefault(first, []).append(name)
        parts: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
        for group, tensor, role in slices:
            for name in (tensor, *further.get(tensor, ())):
                for called in (name, name.rpartition(".")[0]):
                    parts[role == "consumer"].setdefault(called, set()).add(group)
        makes, reads = ({name: frozenset(groups) for name, groups in part.items()} for part in parts)
        return cls(kinds, makes, reads)

    def meant_by(self, glob: str, where: str) -> frozenset[str]:
        """Find the groups that a name, a kind or a glob means.

        The name of a group as it is printed means that one alone, brackets included:
        ``blocks.0.attn.qkv[head]``. The name of a layer or a tensor means the groups whose units it computes.

        Raises ``ValueError`` where there is none; ``where`` begins its message.
        """
        if glob in self.kinds:
            return frozenset([glob])
        found = {
            name
            for name, kind in self.kinds.items()
            if glob == kind or fnmatchcase(name, glob) or fnmatchcase(kind, glob)
        }
        for called, groups in self.makes.items():
            if called and (called == glob or fnmatchcase(called, glob)):
                found |= groups
        if not found:
            raise ArgumentError(f"{where}: no group matches {glob!r}{self._hint(glob)}")
        return frozenset(found)

    def _hint(self, glob: str) -> str:
        if glob in self.reads:
            return f", which only reads {', '.join(sorted(self.reads[glob]))}"
        if any(name.startswith(f"{glob}.") for name in self.makes):
            return f" (did you mean {f'{glob}.*'!r}?)"
        return did_you_mean(
            glob, dict.fromkeys([*self.kinds, *self.kinds.values(), *filter(None, self.makes)])
        )


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A (tensor, dim) slice of a group, whose indices are the units at ``places``.

    A *producer* weight computes the unit (a row of a linear weight, a filter), a *consumer* weight reads it
    (a column of the next layer); a *follower* goes along (biases, norm scales and statistics).
    """

    tensor: str
    dim: int
    role: Role
    places: Places

    @property
    def units(self) -> IntArray:
        """The unit of each index of the dim, -1 where it is none of the group's."""
        return self.places.along()


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units 0..n-1 that are kept or removed one by one, each with all of its slices in all members.

    Attributes:
        name: That of the weight that produces it first; kinds other than "channel" follow in brackets.
        kind: "channel" (units of one layer, or of layers joined by a product), "residual" (several producers
            joined by addition), "head" (attention heads), "head_dim" (positions inside heads), "block" (whole
            groups of a grouped convolution or a group norm).
        n: How many units it has.
        members: The slices of tensors that belong to its units.
        inexact: Why removal is not the same as masking (a norm over the group's axis), None where it is.

    Example:
        group = slimfast.trace_channels(model, example)["layer1.0.conv1"]
        weights = [member.tensor for member in group.producers()]
    """

    name: str
    kind: str
    n: int
    members: tuple[Member, ...]
    inexact: str | None = None

    def producers(self) -> tuple[Member, ...]:
        """List the members whose weights compute the units."""
        return tuple(m for m in self.members if m.role == "producer")


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A Python integer that an operation was given: the length of ``axis``, with which it must change.

    ``argument`` names it as ``size[2]`` or ``groups``; ``value`` is what was recorded.
    """

    argument: str
    value: int
    axis: Axis


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One recorded ATen operation.

    ``within`` numbers the einsum that it is a part of, 0 for none. ``macs``, its multiply-accumulates, is a
    product of constants and axis lengths (empty: none counted).
    """

    name: str
    module: str
    outputs: tuple[tuple[Axis, ...], ...]
    macs: tuple[int | Axis, ...] = ()
    constants: tuple[Constant, ...] = ()
    within: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """A Python attribute of a module that constants come from: it must always be the length of ``axis``.

    ``name`` is the attribute's, or ``config.name`` for one of an object the module holds; ``index`` is the
    place in it where it is a tuple or list. Found by a trial cut (:mod:`slimfast.graph.trial.trial_cut`).
    """

    module: str
    name: str
    index: int | None
    axis: Axis


@dataclass(frozen=True, slots=True)
class Frozen:
    """A dim of a tensor that is left alone, because of ``reason`` at ``module``."""

    tensor: str
    dim: int
    reason: str
    module: str


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGraph:
    """A traced network: a sequence of its channel groups, with what is needed to count, cut and explain it.

    Attributes:
        groups: The channel groups; also found by iteration, by number and by name.
        axes: The axes of every parameter and buffer by its name.
        parameters: The names of those that are parameters.
        operations: The recorded operations, in execution order.
        frozen: The dims that are left alone, with the reason.
        inputs: A description of the example it was traced with.
        tied: Further names of a shared tensor, mapped to the first one.
        itemsize: Bytes of one element of each parameter and buffer (4 where a name is missing).
        attributes: The Python attributes that must follow the widths, None before a trial cut has found them.
        outputs: The names or numbers of the outputs that stay as they are; None: all of them.
        also: Descriptions of the other calls that were traced.
        notes: What was not looked at, one line each.
        decisions: What the forward decided by values, as the recordings of thin networks are handed it.

    Example:
        graph = slimfast.trace_channels(model, example)
        for group in graph:
            print(group.name, group.kind, group.n)
        reasons = {frozen.reason for frozen in graph.frozen}
    """

    groups: tuple[ChannelGroup, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    parameters: frozenset[str]
    operations: tuple[Operation, ...]
    frozen: tuple[Frozen, ...]
    inputs: Any
    tied: Mapping[str, str] = field(default_factory=dict)
    itemsize: Mapping[str, int] = field(default_factory=dict)
    attributes: tuple[Attribute, ...] | None = None
    outputs: tuple[str | int, ...] | None = None
    also: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    decisions: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def names(self) -> GroupNames:
        """List what its groups can be called."""
        kinds = {group.name: group.kind for group in self.groups}
        slices = [
            (group.name, member.tensor, member.role) for group in self.groups for member in group.members
        ]
        return GroupNames.of(kinds, slices, self.tied)

    def __getitem__(self, name: str | int) -> ChannelGroup:
        if isinstance(name, int):
            return self.groups[name]
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)
