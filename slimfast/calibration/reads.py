"""Who reads the very same tensor: layers that do are measured once."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from slimfast.calibration.consumers import Consumer

T = TypeVar("T")


class Seen(Generic[T]):
    """What was made of the tensors that a forward's layers read, found again where another reads the same.

    The same is: in the same memory, which is still in use, with the same layout, and not written to since.
    """

    def __init__(self) -> None:
        self._found: dict[Any, tuple[StorageWeakRef, T]] = {}

    def look(self, consumer: Consumer, x: Tensor) -> T | None:
        """Find what was made of this tensor, read in this way; None where it is new."""
        ref, made = self._found.get(_key(consumer, x), (None, None))
        gone = ref is None or ref.expired()  # type: ignore[no-untyped-call]
        return None if gone else made

    def note(self, consumer: Consumer, x: Tensor, made: T) -> None:
        """Keep what was made of a tensor."""
        ref = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        self._found[_key(consumer, x)] = (ref, made)


def _key(consumer: Consumer, x: Tensor) -> Any:
    place = (x.untyped_storage()._cdata, x.storage_offset(), x._version)
    return (*place, tuple(x.shape), x.stride(), x.dtype, x.dim() - consumer.taps, consumer.run)
