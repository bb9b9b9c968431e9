"""Tensors that stay in their files: what computes with one has it in memory for as long as there is room."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from slimfast.errors import SlimfastError
from slimfast.storage.long_tensors import LONG, LONG_OPS
from slimfast.storage.stored_values import can_read_rows, read_values
from slimfast.storage.weights import Weights

_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """Where a tensor's values come from, and where those go that are written to it.

    Attributes:
        name: What it is called in messages.
        shape: Its shape.
        dtype: Its dtype.
        read: Gives the values, in memory of their own.
        write: Takes other values; None where it may not be written to.
        rows: Gives the rows from one to another, in memory of their own; None where only all can be had.
        write_rows: Takes other values, some rows after the others.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]
    write: Callable[[Tensor], None] | None = None
    rows: Callable[[int, int], Tensor] | None = None
    write_rows: Callable[[Iterator[Tensor]], None] | None = None


class Shelf:
    """The values of stored tensors that are in memory: up to ``memory`` bytes, and one tensor at least.

    The one that was longest not asked for goes first.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self.held = memory, 0
        # Whether products with long tensors are 0: nobody looks at more than their sizes.
        self.blank = False
        self._held: OrderedDict[Entry, Tensor] = OrderedDict()
        # By the address of their memory, for as long as anything refers to it.
        self._known: dict[int, tuple[StorageWeakRef, Entry]] = {}

    def take(self, entry: Entry) -> Tensor:
        """Give the values of a tensor, which nobody may change."""
        found = self._held.get(entry)
        if found is None:
            while self._held and self.held + _bytes(entry) > self.memory:
                self.drop(next(iter(self._held)))
            found = self._held[entry] = entry.read()
            self.held += found.nbytes
            self._known = {at: known for at, known in self._known.items() if not _gone(known[0])}
            storage = found.untyped_storage()
            self._known[storage._cdata] = (StorageWeakRef(storage), entry)  # type: ignore[no-untyped-call]
        self._held.move_to_end(entry)
        return found

    def check(self, entry: Entry) -> Callable[[Tensor], None]:
        """Refuse a tensor that may not be written to, and find where its values go."""
        if entry.write is None:
            raise SlimfastError(f"{entry.name}: a forward writes to a weight that stays in its file")
        return entry.write

    def write(self, entry: Entry, values: Tensor) -> None:
        """Give a tensor other values, which whoever reads it next gets."""
        self.check(entry)(values.detach().to(entry.dtype))
        self.drop(entry)

    def write_rows(self, entry: Entry, pieces: Iterator[Tensor]) -> None:
        """Give a long tensor other values, some rows after the others."""
        self.check(entry)
        assert entry.write_rows is not None, "whatever has rows to read can be written in rows"
        entry.write_rows(piece.detach().to(entry.dtype) for piece in pieces)
        self.drop(entry)

    def is_long(self, entry: Entry) -> bool:
        """Say whether a tensor is only ever looked at a few rows at a time: it is larger than the shelf and
        no layer's but an embedding's or a head's.
        """
        long = len(entry.shape) == 2 and entry.shape[0] >= LONG * entry.shape[1]
        return long and entry.rows is not None and _bytes(entry) > self.memory

    def drop(self, entry: Entry) -> None:
        """Let the values of a tensor go."""
        found = self._held.pop(entry, None)
        if found is not None:
            self.held -= found.nbytes

    def entry_at(self, address: int) -> Entry | None:
        """Find whose values are in the memory at this address; None where they are nobody's."""
        ref, entry = self._known.get(address, (None, None))
        return None if ref is None or _gone(ref) else entry


def _bytes(entry: Entry) -> int:
    return entry.shape.numel() * entry.dtype.itemsize


def _gone(ref: StorageWeakRef) -> bool:
    return bool(ref.expired())  # type: ignore[no-untyped-call]


def shelves_of(tensors: Iterable[Tensor]) -> set[Shelf]:
    """Collect the shelves that bring stored tensors; none where all are in memory."""
    return {tensor.shelf for tensor in tensors if isinstance(tensor, StoredTensor)}


@dataclass(frozen=True, slots=True)
class _Other:
    """What was made of a tensor that lies on no shelf."""

    packed: Any


@contextmanager
def left_on_shelves(
    shelves: Collection[Shelf],
    others: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None = None,
) -> Iterator[None]:
    """Let autograd keep no values of stored tensors for a backward pass: it takes them again when it comes to
    them. What it saves of all others goes through the two functions ``others``, there and back.
    """

    def pack(tensor: Tensor) -> Any:
        if isinstance(tensor, StoredTensor):
            return tensor, tensor._version
        if type(tensor) is Tensor and tensor.layout == torch.strided:
            address = tensor.untyped_storage()._cdata
            for shelf in shelves:
                entry = shelf.entry_at(address)
                if entry is not None:
                    return shelf, entry, (tensor.size(), tensor.stride(), tensor.storage_offset())
        return (tensor, tensor._version) if others is None else _Other(others[0](tensor))

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, _Other):
            assert others is not None
            return others[1](packed.packed)
        if len(packed) == 2:
            tensor, version = packed
            # PyTorch does not look at what hooks have packed.
            if tensor._version != version:
                raise SlimfastError("the forward changes in place what its backward pass needs")
            return cast(Tensor, tensor)
        shelf, entry, place = packed
        found: Tensor = shelf.take(entry).as_strided(*place)
        return found

    if not shelves and others is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class StoredTensor(Tensor):
    """A tensor whose values a shelf brings when an operation asks for them.

    To its users it is a tensor on the CPU. What is computed from it is plain; an operation that writes to it
    writes to its entry. Autograd, which keeps what a backward pass needs, keeps no values of it.
    """

    entry: Entry
    shelf: Shelf
    # Of a long one: whether it is seen with its rows as columns.
    turned: bool
    # Without Python on the way an operation is taken apart as one on plain tensors is, to the same kernels.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, entry: Entry, shelf: Shelf, turned: bool = False) -> StoredTensor:
        """Make a tensor of an entry and the shelf that brings it."""
        shape, strides = entry.shape, None
        if turned:
            shape, strides = torch.Size(entry.shape[::-1]), (1, entry.shape[1])
        made: StoredTensor = Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=entry.dtype, device=torch.device("cpu")
        )
        made.entry, made.shelf, made.turned = entry, shelf, turned
        return made

    @property
    def is_long(self) -> bool:
        """Whether it is only ever looked at a few rows at a time."""
        return self.shelf.is_long(self.entry)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what it is, without its values."""
        return f"StoredTensor({self.entry.name}, {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the values."""
        kwargs = kwargs or {}
        if func in _ALIASES:
            return cls(args[0].entry, args[0].shelf, args[0].turned)
        if func is torch.ops.aten.t.default and args[0].is_long:
            return cls(args[0].entry, args[0].shelf, not args[0].turned)
        if func in LONG_OPS and not kwargs:
            found = _by_rows(func, args)
            if found is not NotImplemented:
                return found
        if func is torch.ops.aten.copy_.default and isinstance(args[0], cls):
            args[0].shelf.write(args[0].entry, _values(args[1]).expand(args[0].shape))
            return args[0]
        own = [
            place
            for place, argument in enumerate(func._schema.arguments[: len(args)])
            if argument.alias_info is not None and argument.alias_info.is_write
            if isinstance(args[place], cls)
        ]
        for place in own:
            args[place].shelf.check(args[place].entry)
        inner, named = pytree.tree_map(_values, (list(args), kwargs))
        for place in own:
            inner[place] = inner[place].clone()
        found = func(*inner, **named)
        for place in own:
            args[place].shelf.write(args[place].entry, inner[place])
        return args[own[0]] if own else found


def _values(leaf: Any) -> Any:
    if not isinstance(leaf, StoredTensor):
        return leaf
    found = leaf.shelf.take(leaf.entry)
    return found.t() if leaf.turned else found


def _by_rows(func: Any, args: Any) -> Any:
    """Run an operation on the one long tensor among its arguments; NotImplemented where there are others."""
    long = [place for place, leaf in enumerate(args) if isinstance(leaf, StoredTensor) and leaf.is_long]
    if len(long) != 1:
        return NotImplemented
    tensor = args[long[0]]
    others = [_values(leaf) if place != long[0] else None for place, leaf in enumerate(args)]
    return LONG_OPS[func](
        tensor.entry.rows, tensor.entry.shape, tensor.entry.dtype, tensor.turned, long[0], others,
        tensor.shelf.blank,
    )  # fmt: skip


@contextmanager
def sizes_alone(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let products with long tensors be 0, and take no memory until somebody writes to them, where it is
    known that nobody looks at more than their sizes.
    """
    shelves = shelves_of(tensors)
    try:
        for shelf in shelves:
            shelf.blank = True
        yield
    finally:
        for shelf in shelves:
            shelf.blank = False


def is_long(tensor: Tensor | None) -> bool:
    """Say whether a tensor is only ever looked at a few rows at a time."""
    return isinstance(tensor, StoredTensor) and tensor.is_long


def write_rows(tensor: Tensor, pieces: Iterator[Tensor]) -> None:
    """Give a tensor other values, some rows after the others."""
    if isinstance(tensor, StoredTensor) and tensor.entry.write_rows is not None:
        tensor.shelf.write_rows(tensor.entry, pieces)
        return
    tensor.copy_(torch.cat(list(pieces)))


def entry_of(weights: Weights, name: str, dtype: torch.dtype) -> Entry:
    """Make the entry of a tensor of a file, read in this dtype."""
    shape = torch.Size(weights.info(name).shape)
    rows = None
    if can_read_rows(weights, name):
        rows = functools.partial(read_values, weights, name, dtype)
    return Entry(name, shape, dtype, lambda: read_values(weights, name, dtype), rows=rows)
