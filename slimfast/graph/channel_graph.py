"""What a traced network is made of: channel groups, and the axes whose length follows from their widths.

All of it is frozen data. ``slimfast.graph.trace_channels`` makes it; costs, plans and pruning read it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.graph.axes import Axis, Places, alive_units
from slimfast.graph.computed_weights import Behind, ComputedWeight, EffectiveTensors
from slimfast.graph.group_names import GroupNames

__all__ = ["Attribute", "Axis", "ChannelGraph", "ChannelGroup", "Constant", "Frozen", "HeldWidth", "Member",
           "Operation", "Places", "Role", "alive_units"]  # fmt: skip

Role = Literal["producer", "consumer", "follower"]


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

    ``name`` is the attribute's, or ``config.name`` for one of an object the module holds,
    ``feature_info.0.num_chs`` for one in lists and tables; ``index`` is the place in it where it is a tuple
    or list. Found by a trial cut (:mod:`slimfast.graph.trial.trial_cut`), or where the forward does not read
    it by :mod:`slimfast.graph.cutting.held_widths`.
    """

    module: str
    name: str
    index: int | None
    axis: Axis


@dataclass(frozen=True, slots=True, eq=False)
class HeldWidth:
    """An integer attribute of a module that may be the length of one of ``axes``, and stays as it is.

    ``name`` as in :class:`Attribute`.
    """

    module: str
    name: str
    value: int
    axes: tuple[Axis, ...]


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
        undecided: Those that may have to follow one, and stay, because it cannot be decided which.
        computed: The weights that the forward makes of parameters, by their names.
        behind: The batch norms and depthwise filters behind a weight, by the weight's name.
        unseen: The parameters that no recorded forward uses, in training mode either, each with the path of
            the nearest module around it that has parameters which one does.
        training_failure: Why the forward cannot be run in training mode, None where it can.

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
    undecided: tuple[HeldWidth, ...] = ()
    computed: Mapping[str, ComputedWeight] = field(default_factory=dict)
    behind: Mapping[str, Behind] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    training_failure: str | None = None

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

    def measured(self, group: ChannelGroup) -> tuple[Member, ...]:
        """List the members of a group as its layers compute with them.

        A parameter that a weight is made of, and that no layer takes itself (``weight_orig`` behind a mask,
        direction and length of a weight norm), gives way to that weight.
        """
        stands_for = {
            key: (weight.name, dim)
            for weight in self.computed.values()
            for key, dim in weight.stands_for.items()
        }
        members: dict[tuple[str, int, bytes, bytes], Member] = {}
        for member in group.members:
            tensor, dim = stands_for.get((member.tensor, member.dim), (member.tensor, member.dim))
            key = tensor, dim, member.places.indices.tobytes(), member.places.units.tobytes()
            if key not in members or members[key].role == "follower":
                same = (tensor, dim) == (member.tensor, member.dim)
                members[key] = member if same else replace(member, tensor=tensor, dim=dim)
        return tuple(members.values())

    def needed(self, group: ChannelGroup) -> tuple[str, ...]:
        """Name the tensors of a group, and those that say besides what its layers compute with."""
        names = [member.tensor for member in (*group.members, *self.measured(group))]
        names += [by for name in names if name in self.behind for by in self.behind[name].silencers]
        made = [self.computed[name] for name in names if name in self.computed]
        sources = (source for weight in made for source in weight.sources.values())
        return tuple(dict.fromkeys(name for name in (*names, *sources) if name not in self.computed))

    def producers(self, group: ChannelGroup) -> tuple[Member, ...]:
        """List the members whose weights compute the units of a group, as its layers compute with them."""
        return tuple(member for member in self.measured(group) if member.role == "producer")

    def consumers(self, group: ChannelGroup) -> tuple[Member, ...]:
        """List the members whose weights read the units of a group, as its layers compute with them."""
        return tuple(member for member in self.measured(group) if member.role == "consumer")

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        """Look up the wide shape of a parameter, a buffer or a computed weight."""
        made = self.computed.get(tensor)
        return tuple(axis.length for axis in self.axes[tensor]) if made is None else made.shape

    def layer_steps(self) -> list[Operation]:
        """List the operations without those that make computed weights."""
        making = {step.place for weight in self.computed.values() for step in weight.steps}
        return [operation for place, operation in enumerate(self.operations) if place not in making]

    def axes_of(self, tensor: str) -> tuple[Axis | None, ...]:
        """Find the axes of a parameter, a buffer or a computed weight; None for one that is not known."""
        made = self.computed.get(tensor)
        if made is None:
            return self.axes[tensor]
        same = {dim: self.axes[source][d] for (source, d), dim in made.stands_for.items()}
        return tuple(
            None if dim in made.unknown else same.get(dim, Axis(length))
            for dim, length in enumerate(made.shape)
        )

    def stored_name(self, tensor: str, names: Container[str]) -> str:
        """Find the name, of these, under which a tensor is held: files keep only one name of a tied one."""
        further = (alias for alias, first in self.tied.items() if first == tensor)
        return next((name for name in (tensor, *further) if name in names), tensor)

    def effective(self, tensors: Mapping[str, Tensor]) -> EffectiveTensors:
        """See tensors by name as the layers compute with them: computed weights too, 0 where silenced."""
        return EffectiveTensors(tensors, self.computed, self.behind)

    def made(self, tensors: Mapping[str, Tensor]) -> EffectiveTensors:
        """See tensors by name, and the computed weights, whatever becomes of what they make."""
        return EffectiveTensors(tensors, self.computed, {})
