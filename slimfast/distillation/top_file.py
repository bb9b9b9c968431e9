"""A file of the largest logits of many texts, as a record a text; it grows at its end, whoever writes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from slimfast.distillation.top_logits import TopLogits
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import append_whole, cannot_read, cannot_write, check_file, lock

_MAGIC = b"slimfast.top_logits.1\n"
_OTHER = b"slimfast.logits."
# How many of how many classes, at what temperature.
_KIND = struct.Struct("<IQd")
_HEAD = struct.Struct("<16sI")
# The most negative number of 16 bits but infinity, which says that a class is ruled out.
_LOWEST = float(np.finfo(np.float16).min)


class _Place(NamedTuple):
    at: int
    length: int


class TopFile:
    """Find the top logits of samples in a file by their keys, and add others.

    A record is a key of 16 bytes, the number of its positions, and of each the log probabilities as float16,
    the classes as uint16 (uint32 where there are more than 65,536), and the rest as float32. What is read
    stays in the file, and only where it is in memory. A record that a stop cut short is written over.
    """

    def __init__(self, path: Path, digest: bytes, top: int, temperature: float) -> None:
        self._path, self._digest, self._top, self._temperature = path, digest, top, temperature
        self._classes = 0
        self._places: dict[bytes, _Place] = {}
        self._end = 0
        if path.exists():
            self._open()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def read(self, keys: list[bytes], length: int | None = None) -> TopLogits:
        """Read known samples as one batch of ``length`` positions, by default those of the longest; beyond a
        sample's own they are -inf.
        """
        if length is None:
            length = max((self._places[key].length for key in keys), default=0)
        shape = (len(keys), length, self._top)
        values = np.full(shape, -np.inf, dtype=np.float32)
        indices, rest = np.zeros(shape, dtype=np.int64), np.full(shape[:2], -np.inf, dtype=np.float32)
        kind = self._record()
        with self._file("rb") as file:
            for row, key in enumerate(keys):
                place = self._places[key]
                file.seek(place.at)
                content = file.read(place.length * kind.itemsize)
                if len(content) < place.length * kind.itemsize:
                    raise cannot_read(self._path, "it is shorter than it was")
                found = np.frombuffer(content, dtype=kind)
                values[row, : place.length] = found["values"]
                indices[row, : place.length] = found["indices"]
                rest[row, : place.length] = found["rest"]
        return TopLogits(
            torch.from_numpy(values),
            torch.from_numpy(indices),
            torch.from_numpy(rest),
            self._temperature,
            self._classes,
        )

    def add(self, keys: list[bytes], lengths: list[int], found: TopLogits) -> None:
        """Write whole records of samples after the whole ones that are there, or nothing."""
        if self._classes not in (0, found.classes):
            raise SlimfastError(f"{self._path}: expected {self._classes} classes, got {found.classes}")
        self._classes = found.classes
        # A number beyond 16 bits is not ruled out, which infinity says.
        values = found.values.cpu().numpy()
        values = np.where(np.isneginf(values), values, np.maximum(values, _LOWEST))
        indices, rest = found.indices.cpu().numpy(), found.rest.cpu().numpy()
        new, records = {}, []
        for row, (key, length) in enumerate(zip(keys, lengths, strict=True)):
            if key in new or key in self._places:
                continue
            record = np.empty(length, dtype=self._record())
            record["values"], record["indices"] = values[row, :length], indices[row, :length]
            record["rest"] = rest[row, :length]
            new[key] = length
            records.append(_HEAD.pack(key, length) + record.tobytes())
        self._append(b"".join(records))

    def _append(self, records: bytes) -> None:
        header = self._header()
        try:
            with self._path.open("r+b" if self._path.exists() else "x+b", buffering=0) as file:
                lock(file.fileno(), self._path, wait=True)
                # Others may have written since; a process that was killed meanwhile has left a part.
                whole = self._caught_up(file)
                append_whole(file, whole, records if whole else header + records)
                self._index(file)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def _header(self) -> bytes:
        return _MAGIC + self._digest + _KIND.pack(self._top, self._classes, self._temperature)

    def _record(self) -> np.dtype[np.void]:
        """Lay out what stands in the file for one position."""
        classes = "<u2" if self._classes <= 1 << 16 else "<u4"
        return np.dtype(
            [("values", "<f2", (self._top,)), ("indices", classes, (self._top,)), ("rest", "<f4")]
        )

    def _file(self, mode: str) -> BinaryIO:
        try:
            return self._path.open(mode)  # type: ignore[return-value]
        except OSError as error:
            raise cannot_read(self._path, error) from error

    def _open(self) -> None:
        """Look whether the file is of this teacher and kind, and where its records are."""
        with check_file(self._path).open("rb") as file:
            content = file.read(len(self._header()))
            at = len(_MAGIC)
            if content.startswith(_OTHER):
                raise SlimfastError(f"{self._path}: expected top logits, got a file of whole ones: top=None")
            if content[:at] != _MAGIC[: len(content)]:
                raise SlimfastError(f"{self._path}: expected top logits of slimfast, got another file")
            if content[at : at + len(self._digest)] != self._digest[: max(0, len(content) - at)]:
                raise SlimfastError(f"{self._path}: expected logits of this teacher, got another's")
            if len(content) < len(self._header()):
                # Killed in its first moment: the next to write begins anew.
                return
            top, self._classes, temperature = _KIND.unpack(content[at + len(self._digest) :])
            if (top, temperature) != (self._top, self._temperature):
                raise SlimfastError(
                    f"{self._path}: expected the top {self._top} logits at temperature "
                    f"{self._temperature:g}, got the top {top} at {temperature:g}; use another file"
                )
            self._index(file)

    def _caught_up(self, file: BinaryIO) -> int:
        """Look at what others have written, and give where the next record begins; 0 before the header."""
        header, size = self._header(), file.seek(0, os.SEEK_END)
        if size < self._end:
            raise cannot_write(self._path, "it is shorter than it was")
        if self._end == 0 and size >= len(header):
            file.seek(0)
            if file.read(len(header)) != header:
                raise SlimfastError(
                    f"{self._path}: another process keeps other logits in it; use another file"
                )
        self._index(file)
        return self._end

    def _index(self, file: BinaryIO) -> None:
        """Find the whole records behind those that are known already."""
        size = file.seek(0, os.SEEK_END)
        at = self._end or len(self._header())
        if size < at:
            return
        width = self._record().itemsize
        while size - at >= _HEAD.size:
            file.seek(at)
            key, length = _HEAD.unpack(file.read(_HEAD.size))
            end = at + _HEAD.size + length * width
            if end > size:
                break
            self._places[key] = _Place(at + _HEAD.size, length)
            at = end
        self._end = at
