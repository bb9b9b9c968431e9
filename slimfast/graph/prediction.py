"""What a cut makes of a recorded network, operation by operation, and where a recording differs from it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from slimfast.graph.groups import Axis, ChannelGraph, IntArray, Operation, alive_units
from slimfast.graph.record import Call, record
from slimfast.graph.recorder import COPIES

Shape: TypeAlias = tuple[int, ...]
Kept: TypeAlias = Callable[[Axis], IntArray]

STOPPED = "nothing more"
# One reshape, under the names it has with and without a copy before it.
_VIEWS = dict.fromkeys(("aten._unsafe_view", "aten._reshape_alias", "aten.reshape"), "aten.view")


def survivors(keeps: Mapping[str, IntArray]) -> Callable[[Axis], IntArray]:
    """The surviving indices of an axis under a cut, as a function that remembers the axes it has seen."""
    masks = {group: alive_units(keep) for group, keep in keeps.items()}
    return functools.cache(lambda axis: axis.alive(masks))


def predicted_shapes(graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> list[tuple[Shape, ...]]:
    """The shapes of the outputs of every recorded operation after a cut."""
    kept = survivors(keeps)
    return [_shapes(operation, kept) for operation in graph.operations]


def _shapes(operation: Operation, kept: Callable[[Axis], IntArray]) -> tuple[Shape, ...]:
    return tuple(tuple(len(kept(axis)) for axis in axes) for axes in operation.outputs)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Operation number ``index`` of a recording is not what was predicted; ``str`` says it in one line."""

    index: int
    operation: str
    module: str
    expected: str
    found: str

    def __str__(self) -> str:
        where = self.module or "the model itself"
        return f"{self.operation} at {where}: expected {self.expected}, got {self.found}"


def mismatches(graph: ChannelGraph, kept: Kept, calls: Sequence[Call]) -> Iterator[Mismatch]:
    """Where a recording differs from the prediction in an operation, a shape or a constant, in order.

    ``kept`` is the cut, as :func:`survivors` gives it. What is missing at the end is ``found`` as
    :data:`STOPPED`.

    PyTorch carries out an einsum by other operations where a length becomes 1; there its result is compared
    alone.
    """
    steps = [(i, operation) for i, operation in enumerate(graph.operations) if operation.name not in COPIES]
    found = [call for call in calls if call.op not in COPIES]
    wide_runs = [list(run) for _, run in itertools.groupby(steps, lambda step: step[1].within)]
    thin_runs = [list(run) for _, run in itertools.groupby(found, lambda call: call.within)]
    for k in range(max(len(wide_runs), len(thin_runs))):
        run = wide_runs[k] if k < len(wide_runs) else []
        thin = thin_runs[k] if k < len(thin_runs) else []
        differ = list(_compare(run, thin, kept, len(graph.operations)))
        if differ and thin and thin[0].within and _collapses(run, kept):
            differ = list(_compare_shapes(run[-1], thin[-1], kept))
        yield from differ


def _collapses(run: list[tuple[int, Operation]], kept: Kept) -> bool:
    """Whether a length in an einsum becomes 1."""
    axes = {axis for _, operation in run for output in operation.outputs for axis in output}
    within = bool(run) and run[0][1].within > 0
    return within and any(axis.length > 1 and len(kept(axis)) == 1 for axis in axes)


def _name(operation: str) -> str:
    return _VIEWS.get(operation, operation)


def _compare_shapes(step: tuple[int, Operation], call: Call, kept: Kept) -> Iterator[Mismatch]:
    i, operation = step
    shapes, got = _shapes(operation, kept), tuple(ref.shape for ref in call.outputs)
    if shapes != got:
        yield Mismatch(i, operation.name, operation.module, f"shapes {shapes}", f"{got}")


def _compare(run: list[tuple[int, Operation]], thin: list[Call], kept: Kept, end: int) -> Iterator[Mismatch]:
    """Operation by operation; ``end`` is the number of the operation after the last."""
    for (i, operation), call in zip(run, thin, strict=False):
        if _name(call.op) != _name(operation.name):
            yield Mismatch(i, operation.name, operation.module, operation.name, call.op)
            continue
        yield from _compare_shapes((i, operation), call, kept)
        for constant in operation.constants:
            value, length = argument_of(call, constant.argument), len(kept(constant.axis))
            # -1 asks for whatever fits, which the shapes have shown to be right.
            if value not in (length, -1):
                told = f"{constant.argument} = {length}"
                yield Mismatch(i, operation.name, operation.module, told, str(value))
    if len(run) > len(thin):
        i, operation = run[len(thin)]
        yield Mismatch(i, operation.name, operation.module, operation.name, STOPPED)
    elif len(thin) > len(run):
        extra = thin[len(run)]
        yield Mismatch(run[-1][0] + 1 if run else end, extra.op, extra.module, STOPPED, extra.op)


def check_thin(thin: nn.Module, graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> list[Mismatch]:
    """Record the thin network and compare every operation with the prediction; empty where all is well.

    Raises :class:`UnsupportedGraph` when its forward fails, naming the module.
    """
    args, kwargs = graph.inputs.example()
    return list(mismatches(graph, survivors(keeps), record(thin, args, kwargs).calls))


def split_argument(argument: str) -> tuple[str, int | None]:
    """``size[2]`` as ("size", 2), ``groups`` as ("groups", None)."""
    name, _, rest = argument.partition("[")
    return name, int(rest[:-1]) if rest else None


def argument_of(call: Call, argument: str) -> Any:
    """The value that a recorded call was given for ``size[2]`` or ``groups``; None where it has none."""
    name, index = split_argument(argument)
    return item_of(call.arguments.get(name), index)


def item_of(value: Any, index: int | None) -> Any:
    """The value itself, or the item at ``index`` of a tuple or list; None where there is none."""
    if index is None:
        return value
    return value[index] if isinstance(value, (tuple, list)) and index < len(value) else None
