"""Folders of ``torch.distributed.checkpoint``: what FSDP trainings save, read tensor by tensor.

Their index, ``.metadata``, is a pickle. Here nothing but the plain data classes of that package comes out of
it; whatever else a pickle could call is refused by name.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from slimfast.errors import SlimfastError, one_line
from slimfast.storage.atomic import reason_of

METADATA = ".metadata"
# What a .metadata may be made of, beside numbers, strings and containers.
_CLASSES = (
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.TensorProperties,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(found.__module__, found.__name__): found for found in _CLASSES},
    **{("pathlib", name): PurePosixPath for name in ("PosixPath", "PurePosixPath", "Path")},
    **{("pathlib", name): PureWindowsPath for name in ("WindowsPath", "PureWindowsPath")},
    ("torch", "Size"): torch.Size,
    # It looks a name up among the layouts, and gives nothing else.
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor: where in it, and where in which file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a folder, and the chunks that make it up."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


def stored_tensors(folder: Path, nested: Iterable[str]) -> dict[str, Stored]:
    """List the tensors of a folder by name, none of them read.

    Of a checkpoint of several state dicts, those of the first entry of ``nested`` that there is; names are
    those inside it. Raises :class:`SlimfastError` naming the folder for whatever is not as it should be.
    """
    where = f"cannot read {folder}"
    index = _index(folder / METADATA, where)
    try:
        return {
            name: _stored(fqn, index, folder, f"{where}: {name}")
            for name, fqn in _names(index, list(nested)).items()
        }
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise SlimfastError(f"{where}: its {METADATA} is malformed: {one_line(error)}") from None


def read_tensor(stored: Stored, name: str) -> Tensor:
    """Put the whole tensor together from its chunks."""
    whole = torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
    for chunk in stored.chunks:
        where = f"cannot read {chunk.path}: {name}"
        try:
            with chunk.path.open("rb") as stream:
                view: Any = _Slice(stream, chunk.start, chunk.length)
                part = torch.load(view, "cpu", weights_only=True)
        except Exception as error:  # a malformed file can make the reader raise anything
            # What follows the first sentence advises to load the file with its code.
            raise SlimfastError(f"{where}: {one_line(error).partition('. ')[0]}") from None
        if not isinstance(part, Tensor) or part.dtype != stored.dtype or tuple(part.shape) != chunk.sizes:
            got = f"{part.dtype} of {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise SlimfastError(f"{where}: expected {stored.dtype} of {chunk.sizes}, got {got}")
        place = tuple(slice(at, at + n) for at, n in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[place] = part.detach()
    return whole


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise SlimfastError(f"it needs {module}.{name}, refused as it may run code")


def _index(path: Path, where: str) -> metadata.Metadata:
    try:
        with path.open("rb") as stream:
            found = _Unpickler(stream).load()
    except SlimfastError as error:
        raise SlimfastError(f"{where}: its {METADATA}: {error}") from None
    except OSError as error:
        raise SlimfastError(f"{where}: {reason_of(error)}") from None
    except Exception as error:  # a malformed pickle can make the reader raise anything
        raise SlimfastError(f"{where}: its {METADATA} is malformed: {one_line(error)}") from None
    if not isinstance(found, metadata.Metadata):
        raise SlimfastError(f"{where}: its {METADATA} holds a {type(found).__name__}")
    return found


def _names(index: metadata.Metadata, nested: list[str]) -> dict[str, str]:
    """List name -> key of the tensors that are meant, in order."""
    tensors = [
        key
        for key, held in index.state_dict_metadata.items()
        if isinstance(key, str) and isinstance(held, metadata.TensorStorageMetadata)
    ]
    given: Mapping[str, Any] = index.planner_data or {}
    paths = {key: tuple(given[key]) if key in given else (key,) for key in tensors}
    for outer in nested:
        inside = {path[1]: key for key, path in paths.items() if len(path) == 2 and path[0] == outer}
        if inside:
            return {str(name): key for name, key in inside.items()}
    return {key: key for key in tensors}


def _stored(key: str, index: metadata.Metadata, folder: Path, where: str) -> Stored:
    held: Any = index.state_dict_metadata[key]
    shape, dtype = _sizes(held.size, where), held.properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise SlimfastError(f"{where}: expected a dtype, got {type(dtype).__name__}")
    chunks = []
    for part in held.chunks:
        offsets, sizes = _sizes(part.offsets, where), _sizes(part.sizes, where)
        if len(offsets) != len(shape) or any(
            at + n > length for at, n, length in zip(offsets, sizes, shape, strict=True)
        ):
            raise SlimfastError(f"{where}: expected chunks of shape {shape}, got {sizes} at {offsets}")
        info: Any = index.storage_data[metadata.MetadataIndex(key, offsets)]
        if info.transform_descriptors:
            raise SlimfastError(f"{where}: expected plain tensors, got {info.transform_descriptors}")
        path = _file(folder, info.relative_path, where)
        # A tensor of absurd shape must not be allocated: its elements are in the files.
        room = path.stat().st_size
        if not 0 <= info.offset <= info.offset + info.length <= room:
            raise SlimfastError(f"{where}: {path.name} ends at byte {room}")
        if math.prod(sizes) * dtype.itemsize > info.length:
            raise SlimfastError(f"{where}: expected {dtype} of {sizes}, got {info.length} bytes")
        chunks.append(Chunk(offsets, sizes, path, info.offset, info.length))
    if not _cover(chunks, shape):
        raise SlimfastError(f"{where}: expected chunks that make up shape {shape}, got {len(chunks)} others")
    return Stored(shape, dtype, tuple(chunks))


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    found = tuple(value)
    if any(type(n) is not int or n < 0 for n in found):
        raise SlimfastError(f"{where}: expected lengths, got {found}")
    return found


def _cover(chunks: list[Chunk], shape: tuple[int, ...]) -> bool:
    """Whether the chunks have as many elements as the tensor and do not overlap, hence make it up."""
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        return False
    filled = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    return not any(_overlap(a, b) for i, a in enumerate(filled) for b in filled[:i])


def _overlap(a: Chunk, b: Chunk) -> bool:
    return all(
        max(at, other) < min(at + n, other + m)
        for at, n, other, m in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    )


def _file(folder: Path, name: Any, where: str) -> Path:
    """Find the file of a chunk; one outside the folder is refused."""
    parts = PureWindowsPath(str(name)).parts
    if PurePosixPath(str(name)).is_absolute() or PureWindowsPath(str(name)).anchor or ".." in parts:
        raise SlimfastError(f"{where}: expected files inside the folder, got {name!r}")
    path = folder / str(name)
    if not path.is_file():
        raise SlimfastError(f"{where}: its file {name} is missing")
    return path


class _Slice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, stream: io.BufferedReader, start: int, length: int) -> None:
        self._stream, self._start, self._length, self._at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: max(0, self._length - self._at)]
        self._stream.seek(self._start + self._at)
        got = self._stream.readinto(wanted)
        self._at += got
        return got
