"""One forward on real tensors, with when each piece of memory was taken and given back.

A tensor lives as long as Python holds it: a layer's input until the layer returns, a local variable until the
function does. No list of operations says so; it is seen here, while the network's own code runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from slimfast.graph.recording.dispatch_mode import Recorder
from slimfast.graph.recording.inputs import tensors_in
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.operators import Operator
from slimfast.memory.gauges import Gauge, running


@dataclass(slots=True, eq=False)
class Taken:
    """Memory that a forward has taken: by which of its calls, and for which of the results of that.

    ``until``: the first call before which it was given back; None where the forward returned it.
    ``share``: its bytes as a share of those of the result's elements.
    """

    call: int
    result: int
    itemsize: int
    share: float
    bytes: int
    until: int | None = None


class LifetimeRecorder(Recorder):  # type: ignore[no-untyped-call]
    """Records a forward on real tensors and keeps none of them alive; ``gauge`` counts from call to call.

    ``taken``: the memory of what the calls have made, beside what the network holds and is given.
    ``itemsizes``: bytes of an element of each tensor, by value.
    """

    def __init__(self, gauge: Gauge, **options: Any) -> None:
        super().__init__(**options)
        self.taken: list[Taken] = []
        self.itemsizes: dict[int, int] = {}
        self._gauge = gauge
        self._runs = False
        self._held: set[int] = set()
        self._objects: list[weakref.ref[Tensor]] = []
        self._living: dict[int, tuple[StorageWeakRef, Taken]] = {}

    def value_of(self, tensor: Tensor) -> int:
        """Number a tensor: the same object has the same number, and a new one at its address another."""
        value = self._values.get(id(tensor))
        if value is None or self._objects[value]() is not tensor:
            self._refuse(tensor)
            value = self._values[id(tensor)] = len(self._objects)
            self._objects.append(weakref.ref(tensor))
            self.itemsizes[value] = tensor.element_size()
            if not self._runs:
                self._held.add(tensor.untyped_storage()._cdata)
        return value

    def give_lists(self, lists: list[list[int]]) -> None:
        """Take note of the lists of positions with which Python indexes from here on."""
        self._lists, self._known = lists, len(self._objects)

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Keep track of the running module, and count bytes."""
        self._runs = True
        with super().watching(network), running(self._gauge):
            yield

    def _note(self, operator: Operator, name: str, arguments: dict[str, Any], output: Any) -> None:
        super()._note(operator, name, arguments, output)
        call = len(self.calls) - 1
        for key in [key for key, (memory, _) in self._living.items() if _gone(memory)]:
            self._living.pop(key)[1].until = call
        for result, tensor in enumerate(tensors_in(output)):
            storage = tensor.untyped_storage()
            if storage._cdata in self._living or storage._cdata in self._held:
                continue
            size = tensor.numel() * tensor.element_size()
            share = storage.nbytes() / max(size, 1)
            taken = Taken(call, result, tensor.element_size(), share, storage.nbytes())
            self.taken.append(taken)
            self._living[storage._cdata] = _weakly(storage), taken
        self._gauge.mark()


def _weakly(storage: Any) -> StorageWeakRef:
    made: Any = StorageWeakRef
    found: StorageWeakRef = made(storage)
    return found


def _gone(memory: Any) -> bool:
    return bool(memory.expired())
