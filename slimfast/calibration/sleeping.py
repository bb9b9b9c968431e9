"""What a forward holds while it waits: found as it is made, and put away until it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.arrays import Arguments
from slimfast.calibration.forward import elements_of, part_of, run
from slimfast.calibration.spilling import Store, bytes_of
from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import map_leaves
from slimfast.storage.stored_tensors import Shelf, StoredTensor

# What tensors have that are no wrappers around others.
_PLAIN = Tensor.__torch_dispatch__


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The memory that a forward's operations take: how much it is, and the same put away and brought back.

    Only memory that an operation takes under the mode counts, and only while something still refers to it:
    never what it was given, such as the network's tensors and the samples, of which it may return a view.
    ``wake``: called with memory that another forward had put away, and which this one turns out to read too.
    ``measure``: note the most that was held at once, as ``peak``. ``made``: all that was ever taken.
    """

    def __init__(self, wake: Callable[[int], None] | None = None, *, measure: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wake, self._measure = wake, measure
        # They bring weights from files, of which an operation may return a view too.
        self._shelves: set[Shelf] = set()
        self._made: dict[int, StorageWeakRef] = {}
        # Each with its blocks in the store's file, none where it stayed in memory, and its bytes.
        self._away: dict[int, tuple[torch.UntypedStorage, list[int], int]] = {}
        self._most = 256
        self.peak = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given: set[int] = set()
        map_leaves((args, kwargs), functools.partial(self._look_at, given))
        made = func(*args, **kwargs)
        map_leaves(made, functools.partial(self._note, given))
        if self._measure:
            self.peak = max(self.peak, self.bytes_held())
        elif len(self._made) > self._most:
            self.bytes_held()
            self._most = 256 + 2 * len(self._made)
        return made

    def _look_at(self, given: set[int], leaf: Any) -> None:
        if isinstance(leaf, StoredTensor):
            self._shelves.add(leaf.shelf)
        elif isinstance(leaf, Tensor) and _has_memory(leaf):
            storage = leaf.untyped_storage()
            given.add(storage._cdata)
            if self._wake is not None and leaf.numel() and not storage.nbytes():
                self._wake(storage._cdata)

    def _note(self, given: set[int], leaf: Any) -> None:
        if isinstance(leaf, Tensor) and _has_memory(leaf):
            storage = leaf.untyped_storage()
            address = storage._cdata
            if any(shelf.entry_at(address) for shelf in self._shelves):
                return
            if address not in given and address not in self._made:
                self._made[address] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.made += storage.nbytes()

    def bytes_held(self) -> int:
        """Count the bytes of what is in use still."""
        return sum(storage.nbytes() for storage in self._alive())

    def sleep(self, store: Store) -> None:
        """Put away what does not fit into the store's memory until :meth:`wake_up`."""
        for storage in self._alive():
            size = storage.nbytes()
            if store.room_for(size) or not storage.resizable():
                store.held += size
                self._away[storage._cdata] = (storage, [], size)
            elif size:
                here = _viewed(storage).cpu()
                self._away[storage._cdata] = (storage, store.write(bytes_of(here)), size)
                storage.resize_(0)

    def wake_up(self, store: Store) -> None:
        """Bring everything back."""
        for address in list(self._away):
            self.bring_back(address, store)

    def bring_back(self, address: int, store: Store) -> bool:
        """Bring one piece of memory back; say whether it was put away here."""
        storage, blocks, size = self._away.pop(address, (None, [], 0))
        if storage is None:
            return False
        if not blocks:
            store.held -= size
            return True
        storage.resize_(size)
        own = _viewed(storage)
        here = own if own.device.type == "cpu" else torch.empty_like(own, device="cpu")
        store.read(blocks, bytes_of(here))
        store.give_up(blocks)
        if here is not own:
            own.copy_(here)
        return True

    def _alive(self) -> list[torch.UntypedStorage]:
        found = []
        for address, ref in list(self._made.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is None:
                del self._made[address]
            else:
                found.append(storage)
        return found


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and type(tensor).__torch_dispatch__ is _PLAIN


def _viewed(storage: torch.UntypedStorage) -> Tensor:
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return whole.set_(storage)


def weigh(network: nn.Module, batch: Arguments) -> tuple[float, float]:
    """Measure how many bytes of activations a forward holds at most, and how many it makes in all, for each
    number of its input; 0 where it does not run on one sample alone, and batches cannot be parted.
    """
    first = part_of(batch, 0, 1)
    try:
        with Activations(measure=True) as found:
            run(network, first, "calibrate")
    except SlimfastError:
        # What is wrong with the batch itself is said when all of it runs.
        return 0.0, 0.0
    return found.peak / elements_of(first), found.made / elements_of(first)
