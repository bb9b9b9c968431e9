"""One try of a cut: the network cut, patched, recorded again and compared with what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import STOPPED, mismatches
from slimfast.graph.recording.attributes import Key
from slimfast.graph.recording.dispatch_mode import COPIES
from slimfast.graph.recording.forward import Call, ForwardFailed, Place, hollow_copy, record_at, record_copy
from slimfast.graph.recording.network import Network


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a trial got: the first operation that disagrees (None: none does), and the module that was
    running, with the message of the error it stopped with.
    """

    index: int | None
    module: str
    calls: tuple[Call, ...]
    error: str = ""

    def right(self, index: int) -> bool:
        """Whether that operation and all before it agree."""
        return self.index is None or self.index > index

    def seen(self) -> tuple[Any, ...]:
        """What a change that matters here changes: the last operation, or the error after it."""
        last = self.calls[-1] if self.calls else None
        return len(self.calls), self.error, last and (last.op, repr(last.arguments), repr(last.outputs))


class Probe:
    """Tries cuts of a network that stays as it is."""

    def __init__(self, network: Network, graph: ChannelGraph, place: Place) -> None:
        self._network = network
        self._place = place
        self._wide = network if place == "real" else Network.of(hollow_copy(network))
        self._args, self._kwargs = graph.inputs.example()

    def reach(self, cut: Cut, attributes: Mapping[Key, Axis], last: int | None = None) -> Reach:
        """How far the network gets after a cut when these attributes follow their axes.

        ``last``: the operation after which it need not go on.
        """
        calls, failure = self._record(cut, attributes, _most(cut.graph, last))
        first = next(mismatches(cut, calls), None)
        if failure is None:
            return Reach(first.index, first.module, calls) if first else Reach(None, "", calls)
        if first is None:
            return Reach(len(cut.graph.operations), failure.module, calls, str(failure))
        module = failure.module if first.got == STOPPED else first.module
        return Reach(first.index, module, calls, str(failure))

    def _record(
        self, cut: Cut, attributes: Mapping[Key, Axis], most: int | None
    ) -> tuple[tuple[Call, ...], ForwardFailed | None]:
        following = [Attribute(*key, axis) for key, axis in attributes.items()]
        thin = cut.thin_copy(self._wide, patches=cut.attribute_patches(self._network, following), share=True)
        try:
            if self._place == "meta":
                return record_copy(thin, self._args, self._kwargs, most=most).calls, None
            return record_at(Network.of(thin), self._args, self._kwargs, self._place, most=most).calls, None
        except ForwardFailed as failure:
            return failure.calls, failure


def _most(graph: ChannelGraph, last: int | None) -> int | None:
    """The number of operations, copies not counted, up to operation ``last``."""
    if last is None or last >= len(graph.operations):
        return None
    return sum(operation.name not in COPIES for operation in graph.operations[: last + 1])
