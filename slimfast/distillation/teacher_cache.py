"""A teacher whose outputs are kept on disk: each sample is computed once, in whatever batch it comes."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.distillation.batches import call
from slimfast.distillation.network_outputs import logits_of, named_outputs
from slimfast.errors import SlimfastError
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import map_leaves
from slimfast.storage.atomic import check_file, lock

_MAGIC = b"slimfast.logits.1\n"
_KEY = 16


class CachedTeacher(nn.Module):
    """Keep the logits of ``teacher`` in a file, for trainings that see the same inputs again and again.

    A sample is known by the bytes of its inputs, so that order and batches do not matter; random augmentation
    makes new samples, which only fill the disk. The file grows by float32 logits and 16 bytes a sample; a
    record that a stop cut short is dropped. It is for one teacher: its weights' digest is in the file.
    Several processes may share it; each knows what it found at the start and what it computed.

    Example:
        teacher = CachedTeacher(model, "logits.bin")
        distill(thin, teacher=teacher, train=batches)

    Its outputs are plain logits, which serve every term but hints. Raises :class:`SlimfastError` for a file
    of another teacher, for one that is none of ours, and where it cannot be written.
    """

    def __init__(self, teacher: nn.Module, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.teacher = teacher
        self._path = Path(path)
        self._known: dict[bytes, np.ndarray] = {}
        self._shape: tuple[int, ...] | None = None
        self._digest = digest_of(teacher)
        if self._path.exists():
            self._read()

    def __len__(self) -> int:
        """Count the samples that are known."""
        return len(self._known)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Give the teacher's logits (N, ...), float32: of known samples from the file, others computed."""
        inputs: Any = kwargs or (args if len(args) > 1 else args[0])
        leaves = list(tensors_in(inputs))
        count = len(leaves[0])
        keys = _keys(leaves, count)
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            self._compute(inputs, keys, new, count)
        found = np.stack([self._known[key] for key in keys])
        return torch.from_numpy(found).to(leaves[0].device)

    @torch.no_grad()
    def _compute(self, inputs: Any, keys: list[bytes], new: list[int], count: int) -> None:
        def cut(leaf: Any) -> Any:
            whole = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count
            return leaf[torch.tensor(new, device=leaf.device)] if whole else leaf

        output = call(self.teacher, map_leaves(inputs, cut))
        if len(names := list(named_outputs(output))) > 1:
            raise SlimfastError(f"CachedTeacher: expected a teacher with one output, got {', '.join(names)}")
        logits = logits_of(output).float().cpu().numpy()
        shape = tuple(logits.shape[1:])
        if self._shape not in (None, shape):
            raise SlimfastError(f"{self._path}: expected logits of shape {self._shape}, got {shape}")
        self._shape = shape
        rows = {keys[i]: row.copy() for i, row in zip(new, logits, strict=True)}
        self._append(b"".join(key + np.ascontiguousarray(r, "<f4").tobytes() for key, r in rows.items()))
        self._known |= rows

    def _append(self, records: bytes) -> None:
        """Write whole records after the whole ones that are there, or nothing."""
        header, size = self._layout()
        try:
            with self._path.open("ab", buffering=0) as file:
                lock(file.fileno(), self._path, wait=True)
                end = file.seek(0, os.SEEK_END)
                # A process that was killed while it wrote has left a part.
                whole = 0 if end < len(header) else end - (end - len(header)) % size
                file.truncate(whole)
                left = memoryview(records if whole else header + records)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(whole)
                    raise
        except OSError as error:
            raise SlimfastError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _layout(self) -> tuple[bytes, int]:
        """Lay out what the file begins with, and the bytes of a record."""
        shape = self._shape or ()
        header = _MAGIC + self._digest + struct.pack(f"<B{len(shape)}Q", len(shape), *shape)
        return header, _KEY + 4 * int(np.prod(shape, dtype=np.int64))

    def _read(self) -> None:
        content = check_file(self._path).read_bytes()
        at = len(_MAGIC)
        if content[:at] != _MAGIC[: len(content)]:
            raise SlimfastError(f"{self._path}: expected logits of slimfast, got another file")
        if content[at : at + _KEY] != self._digest[: max(0, len(content) - at)]:
            raise SlimfastError(f"{self._path}: expected logits of this teacher, got another's")
        dims = content[at + _KEY] if len(content) > at + _KEY else 0
        at += _KEY + 1
        if len(content) < at + 8 * dims:
            # Killed in its first moment: the next to write begins anew.
            return
        self._shape = struct.unpack_from(f"<{dims}Q", content, at)
        header, size = self._layout()
        at = len(header)
        whole = (len(content) - at) // size
        for record in _records(content, at, size, whole):
            row = np.frombuffer(record[_KEY:], dtype="<f4").reshape(self._shape)
            self._known[record[:_KEY]] = row.astype(np.float32)


def _records(content: bytes, at: int, size: int, count: int) -> Iterator[bytes]:
    for i in range(count):
        yield content[at + i * size : at + (i + 1) * size]


def _keys(leaves: list[Tensor], count: int) -> list[bytes]:
    """Digest each sample's bytes in all tensors."""
    arrays = [leaf.detach().cpu().contiguous() for leaf in leaves]
    per_sample = [a if a.dim() and len(a) == count else a.expand(count, *a.shape) for a in arrays]
    keys = []
    for i in range(count):
        digest = hashlib.blake2b(digest_size=_KEY)
        for array in per_sample:
            row = array[i].contiguous()
            digest.update(f"{row.dtype}{tuple(row.shape)}".encode())
            digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
        keys.append(digest.digest())
    return keys


def digest_of(model: nn.Module) -> bytes:
    """Digest the names and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=_KEY)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
