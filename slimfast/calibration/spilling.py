"""Bytes beyond what may be held in memory: put away in one temporary file, and taken back."""

from __future__ import annotations

import ctypes
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from slimfast.errors import ArgumentError, SlimfastError, one_line

# What is held at most, in bytes, where nobody says otherwise.
MEMORY = 1 << 30
_BLOCK = 1 << 20


def check_memory(what: str, memory: int) -> int:
    """Refuse a bound on memory that is no number of bytes."""
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise ArgumentError(f"{what}: expected memory in bytes, 0 or more, got {memory!r}")
    return memory


class Store:
    """Tensors held, in memory up to ``memory`` bytes in all, and beyond that in a temporary file.

    The file has no name that others see, is in ``folder``, by default that of :mod:`tempfile` (``TMPDIR``),
    and goes with the store. A full disk is a :class:`SlimfastError`, and nothing that was held before is lost
    by it.
    """

    def __init__(self, what: str, memory: int, folder: Path | None = None) -> None:
        # ``reserved``: of the memory, what is not to be used yet.
        self.memory, self.held, self.reserved = memory, 0, 0
        self._what, self._folder = what, folder
        self._file: IO[bytes] | None = None
        self._free: list[int] = []
        self._blocks = 0
        self._open = ExitStack()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def room_for(self, count: int) -> bool:
        """Say whether so many more bytes may be held in memory."""
        return self.held + count <= self.memory - self.reserved

    def told(self) -> str:
        """Say what is held, and where."""
        away = (self._blocks - len(self._free)) * _BLOCK
        file = f", {away:,} in a file in {self._where()}" if self._blocks else ""
        return f"{self.held:,} bytes in memory{file}"

    def put(self, tensor: Tensor) -> Held:
        """Hold a tensor that nobody else changes; it comes back with the layout that it has here."""
        tensor, order = in_memory_order(tensor)
        if self.room_for(tensor.nbytes):
            self.held += tensor.nbytes
            return Held(self, tensor, None)
        here = tensor.permute(order).cpu()
        like = (tensor.dtype, here.shape, order, tensor.device)
        return Held(self, None, (self.write(bytes_of(here)), like))

    def write(self, data: memoryview) -> list[int]:
        """Put bytes into the file; the blocks they are in."""
        blocks: list[int] = []
        try:
            file = self._opened()
            for start in range(0, len(data), _BLOCK):
                if not self._free:
                    self._free.append(self._blocks)
                    self._blocks += 1
                blocks.append(self._free.pop())
                file.seek(blocks[-1] * _BLOCK)
                rest = data[start : start + _BLOCK]
                while len(rest):
                    rest = rest[file.write(rest) :]
        except OSError as error:
            self._free += blocks
            raise SlimfastError(
                f"{self._what}: {one_line(error)}, after {self._blocks * _BLOCK:,} bytes of activations "
                f"in {self._where()}; nothing was changed: free space there, {self._elsewhere()}, or allow "
                f"more memory than {self.memory:,} bytes (memory=)"
            ) from None
        return blocks

    def read(self, blocks: list[int], data: memoryview) -> None:
        """Read bytes into ``data``; their blocks stay."""
        file = self._opened()
        for place, block in enumerate(blocks):
            file.seek(block * _BLOCK)
            rest = data[place * _BLOCK : (place + 1) * _BLOCK]
            while len(rest):
                got = file.readinto(rest)  # type: ignore[attr-defined]
                if not got:
                    raise SlimfastError(f"{self._what}: the temporary file of activations was cut short")
                rest = rest[got:]

    def give_up(self, blocks: list[int]) -> None:
        """Let others have these blocks."""
        self._free += blocks

    def _where(self) -> str:
        return str(self._folder or tempfile.gettempdir())

    def _elsewhere(self) -> str:
        return "set TMPDIR to another disk" if self._folder is None else "name a folder on another disk"

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            made = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 (closed with the store)
            self._file = self._open.enter_context(made)
        return self._file


class Held:
    """A tensor in a store, for as many ``users`` as have asked for it."""

    def __init__(self, store: Store, tensor: Tensor | None, away: Any) -> None:
        self._store, self._tensor, self._away = store, tensor, away
        self.users = 1

    def drop(self) -> None:
        """Let one user go without it."""
        self.users -= 1
        if not self.users:
            if self._tensor is None:
                self._store.give_up(self._away[0])
            else:
                self._store.held -= self._tensor.nbytes
            self._tensor = self._away = None

    @property
    def in_memory(self) -> bool:
        """Whether it is held in memory."""
        return self._tensor is not None

    def look(self) -> Tensor:
        """Give the tensor out, and hold it on where it is."""
        return self._tensor if self._tensor is not None else self._read()

    def _read(self) -> Tensor:
        blocks, (dtype, shape, order, device) = self._away
        found = torch.empty(shape, dtype=dtype, device="cpu")
        self._store.read(blocks, bytes_of(found))
        return found.to(device).permute([order.index(dim) for dim in range(len(order))])

    def take(self) -> Tensor:
        """Give the tensor out; to its last user for good."""
        if self._tensor is None:
            self._tensor = self._read()
            self._store.give_up(self._away[0])
            self._away = None
            self._store.held += self._tensor.nbytes
        tensor = self._tensor
        self.drop()
        return tensor


def in_memory_order(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """Give a tensor, or a copy of it, without gaps in its memory, and its dims in the order of that memory.

    Sums over it depend on that order, to rounding, and are not to depend on where it was held.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    if tensor.permute(order).is_contiguous():
        return tensor, order
    return tensor.contiguous(), list(range(tensor.dim()))


def bytes_of(tensor: Tensor) -> memoryview:
    """View the memory of a contiguous tensor on the CPU as bytes, for as long as the tensor lives.

    Unlike a NumPy array it leaves the memory as it is: what NumPy has seen cannot be resized any more.
    """
    size = tensor.nbytes
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b"").cast("B")
