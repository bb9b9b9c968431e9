"""A teacher whose outputs are kept on disk: each sample is computed once, in whatever batch it comes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.distillation.cached_samples import KEY, Unchanged, keys_of, logits_at
from slimfast.distillation.top_logits import TopLogits
from slimfast.distillation.top_teacher import TopTeacher
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.recording.forward import tensors_in
from slimfast.storage.atomic import append_whole, check_file, lock

_MAGIC = b"slimfast.logits.1\n"


class CachedTeacher(nn.Module):
    """Keep the logits of ``teacher`` in a file, for trainings that see the same inputs again and again.

    A sample is known by the bytes of its inputs, so that order and batches do not matter; random augmentation
    makes new samples, which only fill the disk. The file grows by float32 logits and 16 bytes a sample; a
    record that a stop cut short is dropped. It is for one teacher, in eval mode: its weights' digest is in
    the file, and a teacher that was changed since is refused.
    Several processes may share it; each knows what it found at the start and what it computed.

    Example:
        teacher = CachedTeacher(model, "logits.bin")
        distill(thin, teacher=teacher, train=batches)

    Its outputs are plain logits, which serve every term but hints.

    With ``top=64``, for causal language models, it keeps the 64 most probable tokens of each position at
    ``temperature`` and the sum of all others: 4 bytes a token kept (6 where there are more than 65,536), 4
    for the rest and 20 a text, which need not be of one length. Texts are known by their tokens up to the
    last that the mask shows, so that other padding makes no new ones. The soft loss then takes all others as
    one token (:func:`slimfast.distillation.top_logits.top_target_loss`); its temperature must be the same
    one, and 1 suits: the higher, the less of the probability the top tokens have.

        teacher = CachedTeacher(model, "top.bin", top=64, temperature=1.0)
        distill(thin, teacher=teacher, train=batches, loss=DistillationLoss(temperature=1.0))

    Raises :class:`SlimfastError` for a file of another teacher, another ``top`` or ``temperature``, for one
    that is none of ours, and where it cannot be written.
    """

    def __init__(
        self,
        teacher: nn.Module,
        path: str | os.PathLike[str],
        *,
        top: int | None = None,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self._path = Path(path)
        self._teacher_is = Unchanged(teacher)
        self._digest = self._teacher_is.digest
        self._top: TopTeacher | None = None
        if top is not None:
            self._top = TopTeacher(teacher, self._path, self._digest, top, temperature)
            return
        self._known: dict[bytes, np.ndarray] = {}
        self._shape: tuple[int, ...] | None = None
        if self._path.exists():
            self._read()

    def __len__(self) -> int:
        """Count the samples that are known."""
        return len(self._known) if self._top is None else len(self._top)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | TopLogits:
        """Give the teacher's logits (N, ...), float32, or the top of them: of known samples from the file,
        others computed.
        """
        if bool(args) == bool(kwargs):
            raise ArgumentTypeError(
                f"CachedTeacher: expected arguments by their order, or all by name, got {len(args)} and "
                f"{len(kwargs)}"
            )
        self._teacher_is.check()
        inputs: Any = kwargs or (args if len(args) > 1 else args[0])
        if self._top is not None:
            return self._top.outputs(inputs)
        leaves = list(tensors_in(inputs))
        count = len(leaves[0])
        keys = keys_of(inputs, count)
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            self._compute(inputs, keys, new, count)
        found = np.stack([self._known[key] for key in keys])
        return torch.from_numpy(found).to(leaves[0].device)

    @torch.no_grad()
    def _compute(self, inputs: Any, keys: list[bytes], new: list[int], count: int) -> None:
        logits = logits_at(self.teacher, inputs, new, count).float().cpu().numpy()
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
                append_whole(file, whole, records if whole else header + records)
        except OSError as error:
            raise SlimfastError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _layout(self) -> tuple[bytes, int]:
        """Lay out what the file begins with, and the bytes of a record."""
        shape = self._shape or ()
        header = _MAGIC + self._digest + struct.pack(f"<B{len(shape)}Q", len(shape), *shape)
        return header, KEY + 4 * int(np.prod(shape, dtype=np.int64))

    def _read(self) -> None:
        content = check_file(self._path).read_bytes()
        at = len(_MAGIC)
        if content[:at] != _MAGIC[: len(content)]:
            raise SlimfastError(f"{self._path}: expected logits of slimfast, got another file")
        if content[at : at + KEY] != self._digest[: max(0, len(content) - at)]:
            raise SlimfastError(f"{self._path}: expected logits of this teacher, got another's")
        dims = content[at + KEY] if len(content) > at + KEY else 0
        at += KEY + 1
        if len(content) < at + 8 * dims:
            # Killed in its first moment: the next to write begins anew.
            return
        self._shape = struct.unpack_from(f"<{dims}Q", content, at)
        header, size = self._layout()
        at = len(header)
        whole = (len(content) - at) // size
        for record in _records(content, at, size, whole):
            row = np.frombuffer(record[KEY:], dtype="<f4").reshape(self._shape)
            self._known[record[:KEY]] = row.astype(np.float32)


def _records(content: bytes, at: int, size: int, count: int) -> Iterator[bytes]:
    for i in range(count):
        yield content[at + i * size : at + (i + 1) * size]
