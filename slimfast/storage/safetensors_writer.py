"""Safetensors files written tensor by tensor, for what does not fit in memory; the library's writer takes all
at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path, cannot_write
from slimfast.storage.file_sums import FILE_SUM, PLACE, place_in

# The format's names of the element types (https://github.com/huggingface/safetensors, "Format").
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
}
_CHUNK = 16 << 20


@dataclass(frozen=True, slots=True, eq=False)
class InParts:
    """A tensor whose rows come some after the others; a tensor without rows is one part."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Iterable[Tensor]


def write_tensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, Tensor | InParts]],
    *,
    metadata: Mapping[str, str] | None = None,
    summed: bool = False,
) -> None:
    """Write a safetensors file of the tensors of these shapes and dtypes, whole or not at all, one in memory
    at a time.

    ``tensors`` gives (name, tensor) in the order of ``shapes``. With ``summed`` the header holds a checksum
    of all bytes, for :func:`slimfast.storage.file_sums.check_sum`. Raises :class:`SlimfastError` where the
    file cannot be written, for a dtype the format does not have, and for a tensor that is not the announced
    one.
    """
    described = {**(metadata or {}), **({FILE_SUM: PLACE} if summed else {})}
    header: dict[str, object] = {"__metadata__": described} if described else {}
    at = 0
    for name, (shape, dtype) in shapes.items():
        if dtype not in _NAMES:
            raise cannot_write(path, f"{name} is of {dtype}")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    announced = iter(shapes.items())
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        head = len(text).to_bytes(8, "little") + text
        digest = hashlib.sha256(head) if summed else None
        stream.write(head)
        for name, tensor in tensors:
            expected = next(announced, None)
            got = (name, (tuple(tensor.shape), tensor.dtype))
            if expected != got:
                raise SlimfastError(f"{os.fspath(path)}: expected {expected}, got {got}")
            written = 0
            for piece in tensor.parts if isinstance(tensor, InParts) else (tensor,):
                written += piece.nbytes
                for part in bytes_of(piece):
                    stream.write(part)
                    if digest is not None:
                        digest.update(part)
            if written != math.prod(tensor.shape) * tensor.dtype.itemsize:
                raise SlimfastError(f"{os.fspath(path)}: expected {expected}, got {written} bytes of parts")
        missing = next(announced, None)
        if missing is not None:
            raise SlimfastError(f"{os.fspath(path)}: expected {missing}, got no more tensors")
        if digest is not None:
            stream.seek(8 + place_in(text, PLACE))
            stream.write(digest.hexdigest().encode())


def bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor's elements in order, a part at a time."""
    content = tensor.detach().cpu().contiguous()
    content = (torch.view_as_real(content) if content.is_complex() else content).reshape(-1)
    step = _CHUNK // content.element_size()
    for start in range(0, content.numel(), step):
        yield content[start : start + step].view(torch.uint8).numpy().data
