"""What layers read while they were calibrated, at the positions that least squares see: kept for repair.

Repair needs it beside what the thin network's layers get at the same positions, and would have to run the
wide network once more for it. It is kept for as long as the calibration lives: in memory where repair has
room for it, and else in a temporary file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor, nn

from slimfast.calibration.forward import Slice
from slimfast.calibration.spilling import bytes_of, in_memory_order
from slimfast.errors import SlimfastError
from slimfast.graph.recording.module_copies import named_tensors


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows (L, s) in memory, or in the file from the place ``at``, with their dims in the order of their
    memory; the first of them is the layer's position ``first`` of those that are seen.
    """

    rows: Tensor | None
    at: int
    dtype: torch.dtype
    shape: torch.Size
    order: tuple[int, ...]
    first: int
    factors: Tensor | None

    @property
    def count(self) -> int:
        """The number of positions."""
        return self.shape[self.order.index(1)]


@dataclass(slots=True, eq=False)
class KeptLayer:
    """A layer's chunks. Of one sample it reads ``lead`` times ``rest`` positions, of all ``total``."""

    lead: int
    rest: torch.Size
    total: int
    wanted: int
    done: int = 0
    chunks: list[Chunk] = field(default_factory=list)


class KeptRows:
    """The rows of every layer, by its weight, and which layers' output goes right into a batch norm.

    It does not travel: a copy in another process or in a file has none. Reads name their place, so that
    forked processes, which share the file's own, do not disturb each other.
    """

    def __init__(self) -> None:
        self.layers: dict[str, KeptLayer] = {}
        self.followed: set[str] = set()
        # The samples of each slice that was run, and what the network's tensors were.
        self.slices: list[int] = []
        self.digest = ""
        # Bytes in memory, how many more of them there may be, and bytes in the file.
        self.held = self.room = self.bytes = 0
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed below)
        weakref.finalize(self, self._file.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> KeptRows:
        return self

    def write(self, rows: Tensor, first: int, factors: Tensor | None) -> Chunk:
        """Hold rows (L, s), which nobody else writes to; :class:`OSError` where they go to a full disk."""
        rows, order = in_memory_order(rows)
        here = rows.permute(order)
        fits = rows.nbytes <= self.room
        kept = rows if fits else None
        chunk = Chunk(kept, self.bytes, here.dtype, here.shape, tuple(order), first, factors)
        if fits:
            self.room -= rows.nbytes
            self.held += rows.nbytes
            return chunk
        data, at = bytes_of(here), self.bytes
        while len(data):
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written
        self.bytes = at
        return chunk

    def why_not(self, model: nn.Module, counts: Mapping[str, int], slices: Sequence[Slice]) -> str | None:
        """Say why these are not what the model's layers read of these slices; None where they are.

        ``counts``: the layers that are asked for, by weight, and how many positions they have read.
        """
        for weight, count in counts.items():
            if weight not in self.layers or self.layers[weight].total != count:
                return f"none were kept of {weight}"
        samples = [part.samples for part in slices]
        if samples != self.slices and (sum(samples) != sum(self.slices) or max(self.slices) < 2):
            # Of single samples alone it is not known which dim of what a layer reads they are.
            return "they were kept in other slices of samples"
        return None if digest_of(model) == self.digest else "the model has changed since it was calibrated"

    def read(self, weight: str, first: int, last: int) -> Tensor:
        """Take a layer's rows (L, s), from one of the positions that are seen up to another."""
        parts = []
        for chunk, start, stop in self._between(weight, first, last):
            rows = self._read(chunk)
            parts.append(rows if stop - start == chunk.count else rows[:, start:stop])
        return _joined(parts)

    def factors(self, weight: str, first: int, last: int) -> Tensor | None:
        """Give what has brought massive tokens down there, (s,); None where there were none."""
        found = list(self._between(weight, first, last))
        if all(chunk.factors is None for chunk, _, _ in found):
            return None
        return torch.cat(
            [
                torch.ones(stop - start, device="cpu") if chunk.factors is None else chunk.factors[start:stop]
                for chunk, start, stop in found
            ]
        )

    def _between(self, weight: str, first: int, last: int) -> Iterator[tuple[Chunk, int, int]]:
        """Find the chunks of these positions, and which of a chunk's they are."""
        chunks = self.layers[weight].chunks
        for chunk in chunks:
            start, stop = max(first, chunk.first) - chunk.first, min(last - chunk.first, chunk.count)
            if start < stop:
                yield chunk, start, stop
        if first == last:
            yield chunks[0], 0, 0

    def _read(self, chunk: Chunk) -> Tensor:
        if chunk.rows is not None:
            return chunk.rows
        found = torch.empty(chunk.shape, dtype=chunk.dtype, device="cpu")
        data, at = bytes_of(found), chunk.at
        while len(data):
            got = os.preadv(self._file.fileno(), [data], at)
            if not got:
                raise SlimfastError("repair: the temporary file of what layers read was cut short")
            data, at = data[got:], at + got
        return found.permute([chunk.order.index(dim) for dim in range(len(chunk.order))])


def digest_of(model: nn.Module) -> str:
    """Hash a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(model).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(bytes_of(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if all(part.stride(0) == 1 for part in parts):
        return torch.cat([part.T for part in parts]).T
    return torch.cat(list(parts), 1)
