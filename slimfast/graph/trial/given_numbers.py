"""Match the numbers that Python called a function with to the arguments of the operation that it recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slimfast.graph.channel_graph import Axis, ChannelGraph, Operation
from slimfast.graph.cutting.prediction import argument_of, item_of, split_argument
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.number_origins import TracedInt
from slimfast.graph.recording.op_registry import entry_of


def lengths_among(operation: Operation, call: Call) -> Iterator[tuple[str, Axis]]:
    """List the arguments of an operation that are lengths, each with its axis, fixed ones included."""
    known = {constant.argument for constant in operation.constants}
    for constant in operation.constants:
        yield constant.argument, constant.axis
    sizes: list[Axis] = []
    name, entry = "size", entry_of(call.op)
    if entry.sized or entry.reshapes:
        sizes = list(operation.outputs[0])
    elif "split_sizes" in call.arguments:
        dim = call.arguments["dim"]
        name, sizes = "split_sizes", [axes[dim] for axes in operation.outputs]
    given = call.arguments.get(name)
    if isinstance(given, list) and len(given) == len(sizes):
        for index, axis in enumerate(sizes):
            if f"{name}[{index}]" not in known:
                yield f"{name}[{index}]", axis


def axes_of_values(graph: ChannelGraph, recording: Recording) -> dict[tuple[int, int], Axis]:
    """Find the axes of the tensors of a recording, by their numbers and dims."""
    axes: dict[tuple[int, int], Axis] = {}
    for value, name in recording.names.items():
        axes |= {(value, dim): axis for dim, axis in enumerate(graph.axes[name])}
    for operation, call in zip(graph.operations, recording.calls, strict=True):
        for ref, own in zip(call.outputs, operation.outputs, strict=True):
            axes |= {(ref.value, dim): axis for dim, axis in enumerate(own)}
    return axes


def given_as(call: Call, argument: str) -> int | None:
    """Find the number that Python gave for an argument of a call; None where it gave none, or -1.

    What Python called is not the operation that was recorded. So a list is looked for as a whole, and a
    number by its value: if all that have it came from one place, or as many as the operation was given, it
    is that one.
    """
    name, index = split_argument(argument)
    value = item_of(call.arguments[name], index)
    found = _found_in_list(call, argument)
    if found is not None:
        return None if found == -1 else found
    alike = [number for number in call.numbers if number == value]
    origins = {number.origin if isinstance(number, TracedInt) else None for number in alike}
    if len(origins) == 1:
        return alike[0]
    everywhere = _arguments_of(call, value)
    if len(everywhere) == len(alike):
        return alike[everywhere.index(argument)]
    return value if alike else None


def may_be_computed(call: Call, argument: str) -> bool:
    """Say whether PyTorch may have computed this argument though Python gave a number of its value.

    ``x.unflatten(-1, (heads, -1))`` is recorded with all sizes of the result, of which Python gave one, and
    the batch may be as long. So it is where more arguments have the value than numbers were given.
    """
    if _found_in_list(call, argument) is not None:
        return False
    name, index = split_argument(argument)
    value = item_of(call.arguments[name], index)
    alike = [number for number in call.numbers if number == value]
    return len(_arguments_of(call, value)) > len(alike)


def _found_in_list(call: Call, argument: str) -> int | None:
    """Find the item of a list argument in the one list of numbers like it that Python gave, if there is
    one."""
    name, index = split_argument(argument)
    if index is None:
        return None
    given = call.arguments[name]
    width = len(given)
    runs = (call.numbers[start : start + width] for start in range(len(call.numbers) - width + 1))
    found = [run[index] for run in runs if all(n in (m, -1) for n, m in zip(run, given, strict=True))]
    return found[0] if len(found) == 1 else None


def _arguments_of(call: Call, value: int | None) -> list[str]:
    """Name the integers of that value among the arguments of a call, in order."""
    return [key for key in _numbered(call.arguments) if argument_of(call, key) == value]


def _numbered(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Name the integers among the arguments of a call, in order."""
    for name, value in arguments.items():
        if isinstance(value, list):
            yield from (f"{name}[{index}]" for index, item in enumerate(value) if type(item) is int)
        elif type(value) is int:
            yield name
