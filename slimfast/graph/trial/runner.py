"""One try of a cut: the network cut, patched, recorded again and compared with what was predicted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slimfast.arrays import Arguments
from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import STOPPED, mismatches
from slimfast.graph.recording.attributes import AttributeKey
from slimfast.graph.recording.forward import (
    Call,
    ForwardFailed,
    Recording,
    dataless_copy,
    record_at,
    record_copy,
)
from slimfast.graph.recording.leftovers import clear_frames, leaves_nothing
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.op_registry import entry_of
from slimfast.graph.trial.rewrite import GroupChange, GroupRewrite


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What is tried: a cut, and the attributes that follow the lengths of axes."""

    cut: Cut
    attributes: Mapping[AttributeKey, Axis]

    def only(self, groups: Collection[str]) -> Trial:
        """Cut none but these groups."""
        return replace(self, cut=self.cut.only(groups))

    def without(self, groups: Iterable[str]) -> Trial:
        """Leave these groups whole."""
        return replace(self, cut=self.cut.without(groups))

    def rewritten(self, changes: Mapping[str, GroupChange]) -> Trial:
        """Drop groups, or join them with others, and cut what is left."""
        rewrite = GroupRewrite(changes)
        keeps = self.cut.without(changes).keeps
        attributes = {key: rewrite.axis(axis) for key, axis in self.attributes.items()}
        return Trial(Cut(rewrite.graph(self.cut.graph), keeps), attributes)

    def groups_in(self, axes: Iterable[Axis]) -> list[str]:
        """Name the groups, of those that are cut, that have a say in these axes."""
        return [name for axis in axes for name in axis.groups if name in self.cut.keeps]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How far a trial got: the first operation that disagrees (None: none does), the module that was running,
    and the message of the error that it stopped with.
    """

    index: int | None
    module: str
    calls: tuple[Call, ...]
    error: str = ""

    def is_right(self, index: int) -> bool:
        """Say whether that operation and all before it agree."""
        return self.index is None or self.index > index

    def seen(self) -> tuple[Any, ...]:
        """Show what an attribute that matters here changes: the last operation, or the error after it."""
        last = self.calls[-1] if self.calls else None
        return len(self.calls), self.error, last and (last.op, repr(last.arguments), repr(last.outputs))


class TrialRunner:
    """Runs trials of a network, which stays as it is."""

    def __init__(self, network: Network, recording: Recording, arguments: Arguments) -> None:
        self._network = network
        self._mode = recording.tensor_mode
        self._decisions = recording.decisions
        self._wide = network if self._mode == "real" else Network.of(dataless_copy(network))
        self._arguments = arguments

    def run(self, trial: Trial, last: int | None = None) -> TrialResult:
        """Say how far the network gets. ``last``: the operation after which it need not go on."""
        calls, failure = self._record(trial, _count_operations(trial.cut.graph, last))
        first = next(mismatches(trial.cut, calls), None)
        if failure is None:
            return TrialResult(first.index, first.module, calls) if first else TrialResult(None, "", calls)
        if first is None:
            return TrialResult(len(trial.cut.graph.operations), failure.module, calls, str(failure))
        module = failure.module if first.got == STOPPED else first.module
        return TrialResult(first.index, module, calls, str(failure))

    @leaves_nothing
    def _record(self, trial: Trial, most: int | None) -> tuple[tuple[Call, ...], ForwardFailed | None]:
        following = [Attribute(*key, axis) for key, axis in trial.attributes.items()]
        patches = trial.cut.attribute_patches(self._network, following)
        thin = trial.cut.thin_copy(self._wide, patches=patches, share=True)
        try:
            if self._mode == "meta":
                return record_copy(thin, *self._arguments, max_operations=most).calls, None
            recorded = record_at(
                Network.of(thin),
                *self._arguments,
                self._mode,
                max_operations=most,
                decisions=self._decisions,
            )
            return recorded.calls, None
        except ForwardFailed as failure:
            clear_frames(failure)
            # without its traceback, whose frames hold the thin copy and what it has cached
            return failure.calls, ForwardFailed(str(failure), failure.calls, failure.module)


def _count_operations(graph: ChannelGraph, last: int | None) -> int | None:
    """Count the operations, copies left out, up to operation ``last``."""
    if last is None or last >= len(graph.operations):
        return None
    return sum(not entry_of(operation.name).copies for operation in graph.operations[: last + 1])
