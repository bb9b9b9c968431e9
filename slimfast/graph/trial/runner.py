"""One try of a cut: the network cut, patched, recorded again and compared with what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph, IntArray
from slimfast.graph.cutting.cut import apply_patches, cut, patches_of, select_indices, thin_shape
from slimfast.graph.cutting.prediction import STOPPED, mismatches, survivors
from slimfast.graph.recording.attributes import Key
from slimfast.graph.recording.dispatch_mode import COPIES
from slimfast.graph.recording.forward import (
    Call,
    ForwardFailed,
    Place,
    hollow_copy,
    hollow_tensors,
    record_at,
    record_copy,
)
from slimfast.graph.recording.module_copies import copy_network
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
    """Tries cuts of a model that stays as it is. ``kept`` is the last cut, as :func:`survivors` gives it."""

    def __init__(self, network: Network, graph: ChannelGraph, place: Place) -> None:
        self.kept = survivors({})
        self._network = network
        self._place = place
        self._hollow = hollow_tensors(network) if place != "real" else {}
        self._args, self._kwargs = graph.inputs.example()
        self._keeps: Mapping[str, IntArray] = {}
        self._cuts: Mapping[str, Mapping[int, IntArray]] = {}

    def reach(
        self,
        graph: ChannelGraph,
        keeps: Mapping[str, IntArray],
        attributes: Mapping[Key, Axis],
        last: int | None = None,
    ) -> Reach:
        """How far the network gets when these units are kept and these attributes follow their axes.

        ``last``: the operation after which it need not go on.
        """
        if keeps is not self._keeps:
            self._keeps, self._cuts, self.kept = keeps, cut(graph, keeps), survivors(keeps)
        calls, failure = self._record(attributes, _most(graph, last))
        first = next(mismatches(graph, self.kept, calls), None)
        if failure is None:
            return Reach(first.index, first.module, calls) if first else Reach(None, "", calls)
        if first is None:
            return Reach(len(graph.operations), failure.module, calls, str(failure))
        module = failure.module if first.found == STOPPED else first.module
        return Reach(first.index, module, calls, str(failure))

    def _record(
        self, attributes: Mapping[Key, Axis], most: int | None
    ) -> tuple[tuple[Call, ...], ForwardFailed | None]:
        lengths = [(Attribute(*key, axis), len(self.kept(axis))) for key, axis in attributes.items()]
        thin = self._thin_copy()
        apply_patches(thin, patches_of(self._network, self._cuts, lengths))
        try:
            if self._place == "meta":
                return record_copy(thin, self._args, self._kwargs, most=most).calls, None
            return record_at(Network.of(thin), self._args, self._kwargs, self._place, most=most).calls, None
        except ForwardFailed as failure:
            return failure.calls, failure

    def _thin_copy(self) -> nn.Module:
        wide = self._network.tensors
        if self._place == "real":
            thin = {name: select_indices(wide[name].detach(), dims) for name, dims in self._cuts.items()}
            return copy_network(self._network, thin)
        tensors = dict(self._hollow)
        for name, dims in self._cuts.items():
            shape = thin_shape(tuple(wide[name].shape), dims)
            cut_tensor = torch.empty(shape, dtype=wide[name].dtype, device="meta")
            if isinstance(wide[name], nn.Parameter):
                # some operations go by another name where no gradient is wanted
                cut_tensor = nn.Parameter(cut_tensor, wide[name].requires_grad)
            tensors[id(wide[name])] = cut_tensor
        return hollow_copy(self._network, tensors)


def _most(graph: ChannelGraph, last: int | None) -> int | None:
    """The number of operations, copies not counted, up to operation ``last``."""
    if last is None or last >= len(graph.operations):
        return None
    return sum(operation.name not in COPIES for operation in graph.operations[: last + 1])
