"""A recorded forward split into pieces that can run alone, at any widths of the groups.

A piece begins at an operation with multiply-adds, or where a group comes in that the piece before has no
part in, and ends before the next: a convolution with its batch norm and activation, say, as compilers fuse
them. Together the pieces are the whole forward, and nothing is counted twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.graph.channel_graph import Axis, ChannelGraph, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import split_argument
from slimfast.graph.cutting.recorded_axes import Axes, axes_of, known_axes, operations_of
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network
from slimfast.latency.lengths import Polynomial, polynomial_of
from slimfast.latency.replay import Step, Value, module_of, replayed


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a piece is given: a value of the forward, by its number, with the axes it has there."""

    value: int
    axes: Axes


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction in which a piece changes: the length of an axis, with the groups that move it."""

    length: Polynomial
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of operations that can run alone.

    Two pieces of the same ``signature`` take the same time at the same lengths of their ``directions``.
    ``returned``: the values that operations behind it read.
    """

    signature: str
    module: str
    operations: tuple[str, ...]
    directions: tuple[Direction, ...]
    steps: tuple[tuple[Step, Operation], ...]
    sources: tuple[Source, ...]
    returned: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A forward in pieces, and what is needed to run each of them at other widths."""

    graph: ChannelGraph
    pieces: tuple[Piece, ...]
    values: Mapping[int, Value]
    full: Mapping[str, int]

    def module_at(self, piece: Piece, widths: Mapping[str, int]) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Build a piece at these widths as a module, and an example of its arguments."""

        # Of a group that is narrower the first units: of an axis of several groups, such as a padded stream,
        # what is left depends on which they are, and all pieces must agree.
        length = Cut(self.graph, {name: np.arange(width) for name, width in widths.items()}).kept_length
        steps = []
        for step, operation in piece.steps:
            changed = {c.argument: length(c.axis) for c in operation.constants}
            step = step.with_constants({split_argument(name): n for name, n in changed.items()})
            whole = tuple(axis.length for axis in operation.outputs[0]) if operation.outputs else ()
            steps.append(step.laid_out(whole, tuple(map(length, operation.outputs[0])) if whole else ()))
        held: dict[int, Tensor] = {}
        given: dict[int, Tensor] = {}
        for source in piece.sources:
            value = self.values[source.value]
            shape = tuple(map(length, source.axes))
            (held if value.weight else given)[source.value] = value.at(shape)
        return module_of(steps, held, tuple(given), piece.returned), tuple(given.values())


@torch.no_grad()
def split_forward(network: Network, graph: ChannelGraph, given: Arguments) -> Split:
    """Split a network's forward into pieces; it runs once, in eval mode and on its own device.

    Raises :class:`SlimfastError` for a graph of another network.
    """
    args, kwargs = given
    recording = record(network, args, kwargs, decisions=graph.decisions)
    operations = operations_of(graph, recording, "latency")
    steps, values = replayed(network, recording, given)
    axes = known_axes(recording.names, graph)
    full = {group.name: group.n for group in graph.groups}
    return Split(graph, tuple(_pieces(steps, operations, axes, values, full)), values, full)


def _pieces(
    steps: Sequence[Step],
    operations: Sequence[Operation],
    axes: dict[int, Axes],
    values: Mapping[int, Value],
    full: Mapping[str, int],
) -> Iterator[Piece]:
    """Cut the steps where a piece begins; ``axes`` has those of the values that are there before."""
    last_use = {ref.value: i for i, step in enumerate(steps) for ref in step.reads()}
    begun: list[int] = []
    say: set[str] = set()
    known: list[dict[int, Axes]] = []
    for i, (step, operation) in enumerate(zip(steps, operations, strict=True)):
        read = {ref.value: axes_of(ref, axes) for ref in step.reads()}
        known.append(read)
        own = {
            g for all_axes in (*read.values(), *operation.outputs) for axis in all_axes for g in axis.groups
        }
        if not begun or operation.macs or not own <= say:
            begun.append(i)
            say = own
        for ref, made in zip(step.outputs, operation.outputs, strict=True):
            axes[ref.value] = made
    for first, end in zip(begun, [*begun[1:], len(steps)], strict=True):
        part = list(zip(steps[first:end], operations[first:end], strict=True))
        yield _piece(part, known[first:end], last_use, end, values, full)


def _piece(
    part: Sequence[tuple[Step, Operation]],
    known: Sequence[Mapping[int, Axes]],
    last_use: Mapping[int, int],
    end: int,
    values: Mapping[int, Value],
    full: Mapping[str, int],
) -> Piece:
    sources: dict[int, Source] = {}
    made: set[int] = set()
    for (step, _), read in zip(part, known, strict=True):
        for value, axes in read.items():
            if value not in made and value not in sources:
                sources[value] = Source(value, axes)
        made |= {ref.value for ref in step.outputs}
    returned = tuple(sorted(v for v in made if last_use.get(v, -1) >= end))
    if not returned:
        returned = tuple(ref.value for ref in part[-1][0].outputs)
    directions = _directions(part, sources)
    return Piece(
        signature=_signature(part, sources, directions, values, full),
        module=part[0][1].module,
        operations=tuple(operation.name for _, operation in part),
        directions=directions,
        steps=tuple(part),
        sources=tuple(sources.values()),
        returned=returned,
    )


def _directions(
    part: Sequence[tuple[Step, Operation]], sources: Mapping[int, Source]
) -> tuple[Direction, ...]:
    """Find the directions in which a piece changes: the axes of its product first, then the longest."""
    first = part[0][1]
    others = [axis for source in sources.values() for axis in source.axes]
    others += [axis for _, operation in part for made in operation.outputs for axis in made]
    axes = [factor for factor in first.macs if isinstance(factor, Axis)]
    axes += sorted(others, key=lambda axis: -axis.length)
    taken: set[str] = set()
    found = []
    for axis in axes:
        new = tuple(dict.fromkeys(group for group in axis.groups if group not in taken))
        if new:
            taken |= set(new)
            found.append(Direction(polynomial_of(axis), new))
    return tuple(found)


def _signature(
    part: Sequence[tuple[Step, Operation]],
    sources: Mapping[int, Source],
    directions: Sequence[Direction],
    values: Mapping[int, Value],
    full: Mapping[str, int],
) -> str:
    """Describe what decides how long a piece takes, whatever its groups and values are called."""
    groups: dict[str, int] = {}
    for direction in directions:
        for name in direction.groups:
            groups.setdefault(name, len(groups))
    numbers: dict[int, int] = {}

    def axis_text(axis: Axis) -> Any:
        return sorted((tuple(groups[n] for n in names), count) for names, count in polynomial_of(axis))

    def number(value: int) -> int:
        return numbers.setdefault(value, len(numbers))

    text: list[Any] = [[full[name] for name in groups]]
    for value, source in sources.items():
        text.append((number(value), [axis_text(axis) for axis in source.axes], values[value].describe()))
    for step, operation in part:
        arguments = step.describe(number)
        constants = [(c.argument, axis_text(c.axis)) for c in operation.constants]
        outputs = [[axis_text(axis) for axis in made] for made in operation.outputs]
        text.append((arguments, constants, [number(ref.value) for ref in step.outputs], outputs))
    return hashlib.blake2b(repr(text).encode(), digest_size=12).hexdigest()
