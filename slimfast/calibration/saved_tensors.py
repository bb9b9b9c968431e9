"""What a forward saves for its backward pass, put away beyond a bound on memory.

A backward pass takes what was saved last first: what is saved while there is room stays in memory, the rest
goes to a temporary file and comes back to the bit when it is asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from slimfast.calibration.derivatives import as_it_is
from slimfast.calibration.spilling import Held, Store
from slimfast.errors import SlimfastError
from slimfast.storage.stored_tensors import Shelf, left_on_shelves

# Less than that, in bytes, is not worth a look.
_SMALL = 1 << 16


class Saved:
    """A tensor that is held in a store for as long as this object lives."""

    def __init__(self, store: Store, tensor: Tensor) -> None:
        self._held = store.put(tensor)
        self._version = self._held.look()._version if self._held.in_memory else None
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        weakref.finalize(self, Held.drop, self._held)

    @property
    def known(self) -> bool:
        """Whether the memory that it was saved from is in use still."""
        return not self._storage.expired()  # type: ignore[no-untyped-call]

    def changed(self) -> bool:
        """Say whether it was written to meanwhile; what is in the file is as it was."""
        return self._version is not None and self._held.look()._version != self._version

    def tensor(self) -> Tensor:
        """Give it back; :class:`SlimfastError` where it was written to meanwhile."""
        if self.changed():
            raise SlimfastError(
                "plan: the network writes to a tensor that its backward pass needs; allow more memory than "
                "its activations take (memory=), or let it write to a copy"
            )
        return self._held.look()


class SavedTensors:
    """Holds what is saved under :meth:`saving`, up to the store's memory, less what belongs to ``own`` and
    what lies on ``shelves``, which stays there.
    """

    def __init__(self, store: Store, own: set[int], shelves: Collection[Shelf] = ()) -> None:
        self._store, self._own, self._shelves = store, own, shelves
        self._found: weakref.WeakValueDictionary[tuple[object, ...], Saved] = weakref.WeakValueDictionary()

    def saving(self) -> AbstractContextManager[object]:
        """Make what autograd saves meanwhile be held here."""
        return left_on_shelves(self._shelves, (self._pack, self._unpack))

    def hold(self, tensor: Tensor) -> Saved:
        """Hold a tensor, once however often it comes."""
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype,
               tensor._version)  # fmt: skip
        found = self._found.get(key)
        if found is None or not found.known:
            with as_it_is():
                found = self._found[key] = Saved(self._store, tensor.detach())
        return found

    def _pack(self, tensor: Tensor) -> Tensor | Saved:
        plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
        storage = tensor.untyped_storage()
        # What is expanded takes less memory as it is.
        if not plain or not _SMALL <= tensor.nbytes <= storage.nbytes() or storage._cdata in self._own:
            return tensor
        return self.hold(tensor)

    def _unpack(self, saved: Tensor | Saved) -> Tensor:
        return saved.tensor() if isinstance(saved, Saved) else saved
