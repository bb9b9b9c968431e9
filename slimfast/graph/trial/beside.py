"""Let attributes that no forward is known to read follow in a trial, which shows whether one reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slimfast.graph.channel_graph import Axis, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import aligned, split_argument
from slimfast.graph.recording.attributes import AttributeKey
from slimfast.graph.recording.calls import Call, refs_in
from slimfast.graph.trial.runner import Trial, TrialResult, TrialRunner

# Arguments that are the lengths of what an operation makes, which are compared as such.
_LENGTHS = frozenset({"size", "shape", "split_sizes"})


def first_trial(
    runner: TrialRunner, trial: Trial, beside: Mapping[AttributeKey, Axis], wide: Sequence[Call]
) -> tuple[TrialResult, bool]:
    """Run a trial, and say whether the attributes ``beside`` may follow too because the forward reads none.

    They follow in the first run. If it is as predicted and computes with the numbers of the calls ``wide``,
    recorded before the cut, or with those of a run in which they stay, nothing has read them.
    """
    cut = trial.cut
    if not beside or any(cut.kept_length(axis) == axis.length for axis in beside.values()):
        return runner.run(trial), not beside
    together = runner.run(replace(trial, attributes={**beside, **trial.attributes}))
    if together.index is None and _same_numbers(cut, wide, together.calls):
        return together, True
    alone = runner.run(trial)
    right = together.index is None and alone.index is None
    return alone, right and _written(together.calls) == _written(alone.calls)


def _same_numbers(cut: Cut, wide: Sequence[Call], thin: Sequence[Call]) -> bool:
    """Say whether the calls after a cut have the numbers of those before it, but for lengths, which are
    predicted."""
    operations = cut.graph.operations
    return all(
        _numbers(operations[i], wide[i]) == _numbers(operations[i], call) for i, call in aligned(cut, thin)
    )


def _numbers(operation: Operation, call: Call) -> list[Any]:
    """List the arguments of a call that are no tensors and no lengths."""
    lengths = _LENGTHS.union(split_argument(constant.argument)[0] for constant in operation.constants)
    return [v for name, v in call.arguments.items() if name not in lengths and not refs_in(v)]


def _written(calls: Sequence[Call]) -> list[Any]:
    """Write down what calls say, to be compared."""
    return [(call.op, call.module, repr(call.arguments), call.outputs) for call in calls]
