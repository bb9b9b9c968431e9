"""Where the recording of a thin network differs from what the cut predicts, operation by operation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from slimfast.arrays import Arguments
from slimfast.graph.channel_graph import Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.forward import Call, record
from slimfast.graph.recording.module_copies import collector_paused
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.op_registry import entry_of

# An operation with its number.
Step: TypeAlias = tuple[int, Operation]

STOPPED = "nothing more"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference at operation number ``index``; ``str`` says it in one line."""

    index: int
    operation: str
    module: str
    expected: str
    got: str

    def __str__(self) -> str:
        where = self.module or "the model itself"
        return f"{self.operation} at {where}: expected {self.expected}, got {self.got}"


def mismatches(cut: Cut, calls: Sequence[Call]) -> Iterator[Mismatch]:
    """Find where a recording differs from the prediction in an operation, a shape or a constant, in order.

    What is missing at the end is ``got`` as :data:`STOPPED`.

    Where a length becomes 1, PyTorch carries out an einsum by other operations, of which the result is then
    compared alone, and a model may leave out the views around a repetition.
    """
    wide_runs = [list(run) for _, run in itertools.groupby(_steps(cut), lambda step: step[1].within)]
    thin_runs = [list(run) for _, run in itertools.groupby(_no_copies(calls), lambda call: call.einsum)]
    for k in range(max(len(wide_runs), len(thin_runs))):
        run = wide_runs[k] if k < len(wide_runs) else []
        thin = thin_runs[k] if k < len(thin_runs) else []
        differ = list(_compare(run, thin, cut, len(cut.graph.operations)))
        if differ and run and thin and run[0][1].within and thin[0].einsum and _collapse(run, cut):
            differ = list(_compare_shapes(run[-1], thin[-1], cut))
        yield from differ


def _steps(cut: Cut) -> list[Step]:
    return [(i, step) for i, step in enumerate(cut.graph.operations) if not entry_of(step.name).copies]


def _no_copies(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if not entry_of(call.op).copies]


def _name(operation: str) -> str:
    return "a reshape" if entry_of(operation).reshapes else operation


def _compare_shapes(step: Step, call: Call, cut: Cut) -> Iterator[Mismatch]:
    i, operation = step
    shapes, got = cut.shapes_of(operation), tuple(ref.shape for ref in call.outputs)
    if shapes != got:
        yield Mismatch(i, operation.name, operation.module, f"shapes {shapes}", f"{got}")


def _compare(run: list[Step], thin: list[Call], cut: Cut, end: int) -> Iterator[Mismatch]:
    """Compare operation by operation; ``end`` is the number of the operation after the last."""
    for step, call in _aligned(run, thin, cut):
        if step is None or call is None:
            yield _left_over(run, step, call, end)
            return
        i, operation = step
        if _name(call.op) != _name(operation.name):
            yield Mismatch(i, operation.name, operation.module, operation.name, call.op)
            continue
        yield from _compare_shapes((i, operation), call, cut)
        for constant in operation.constants:
            value, length = argument_of(call, constant.argument), cut.kept_length(constant.axis)
            # -1 asks for whatever fits, which the shapes have shown to be right.
            if value not in (length, -1):
                expected = f"{constant.argument} = {length}"
                yield Mismatch(i, operation.name, operation.module, expected, str(value))


def _left_over(run: list[Step], step: Step | None, call: Call | None, end: int) -> Mismatch:
    """Describe an operation without its call, or a call that no operation predicts."""
    if step is not None:
        return Mismatch(step[0], step[1].name, step[1].module, step[1].name, STOPPED)
    op, module = (call.op, call.module) if call is not None else ("", "")
    return Mismatch(run[-1][0] + 1 if run else end, op, module, STOPPED, op)


def aligned(cut: Cut, calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Pair the number of each predicted operation with the call that stands for it."""
    for step, call in _aligned(_steps(cut), _no_copies(calls), cut):
        if step is not None and call is not None:
            yield step[0], call


def _aligned(run: list[Step], thin: list[Call], cut: Cut) -> Iterator[tuple[Step | None, Call | None]]:
    """Put operations and calls side by side, without the views that may be left out; None where one side
    ends.
    """
    i = j = 0
    while i < len(run):
        call = thin[j] if j < len(thin) else None
        agree = call is not None and _name(call.op) == _name(run[i][1].name)
        if call is None or agree or not _may_be_missing(run, i, cut):
            yield run[i], call
            j += 1
        i += 1
    for rest in thin[j:]:
        yield None, rest


def _may_be_missing(run: list[Step], i: int, cut: Cut) -> bool:
    """Say whether operation ``i`` is one of several plain views in a row of which one has a length that
    becomes 1.
    """
    first = last = i
    while first >= 0 and entry_of(run[first][1].name).plain_view:
        first -= 1
    while last < len(run) and entry_of(run[last][1].name).plain_view:
        last += 1
    return _collapse(run[first + 1 : last], cut)


def _collapse(run: list[Step], cut: Cut) -> bool:
    """Say whether a length in the results of these operations becomes 1."""
    axes = {axis for _, operation in run for output in operation.outputs for axis in output}
    return any(axis.length > 1 and cut.kept_length(axis) == 1 for axis in axes)


@collector_paused()
def check_thin(thin: nn.Module, cut: Cut, example: Arguments | None = None) -> list[Mismatch]:
    """Record the thin network and compare every operation with the prediction; empty where all is well.

    ``example``: the arguments it is called with, made up unless given.
    Raises :class:`UnsupportedGraph` when its forward fails, naming the module.
    """
    args, kwargs = example or cut.graph.inputs.example()
    recording = record(Network.of(thin), args, kwargs, decisions=cut.graph.decisions)
    return list(mismatches(cut, recording.calls))


def split_argument(argument: str) -> tuple[str, int | None]:
    """Split ``size[2]`` into ("size", 2), ``groups`` into ("groups", None)."""
    name, _, rest = argument.partition("[")
    return name, int(rest[:-1]) if rest else None


def argument_of(call: Call, argument: str) -> Any:
    """Look up what a recorded call was given for ``size[2]`` or ``groups``; None where it has none."""
    name, index = split_argument(argument)
    return item_of(call.arguments.get(name), index)


def item_of(value: Any, index: int | None) -> Any:
    """Take a value itself, or the item at ``index`` of a tuple or list; None where there is none."""
    if index is None:
        return value
    return value[index] if isinstance(value, (tuple, list)) and index < len(value) else None
