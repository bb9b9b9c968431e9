"""Safetensors files with a document of ours in the header: tensors, and the JSON that says what they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from slimfast.arrays import Shape
from slimfast.storage.atomic import cannot_read, check_file, reason_of
from slimfast.storage.file_kinds import cut_short, kind_of
from slimfast.storage.safetensors_writer import bytes_of, write_tensors

# The entries of the header's metadata that hold the document, and the digest of all there is.
KEY = "slimfast"
SUM = "sha256"


def write_tensor_document(path: str | os.PathLike[str], document: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a document and contiguous tensors to a file, whole or not at all."""
    # The format wants each tensor at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    shapes = {name: (tuple(tensors[name].shape), tensors[name].dtype) for name in names}
    metadata = {KEY: document, SUM: _digest(document, tensors)}
    write_tensors(path, shapes, ((name, tensors[name]) for name in names), metadata=metadata)


def _digest(document: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the digest of a document and of tensors, their names, dtypes and shapes."""
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in bytes_of(tensor):
            digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TensorDocument:
    """An open file: its ``document`` and, by name, what is known of its tensors before they are read.

    ``dtypes`` are the format's names of them (``F64``).
    """

    path: str | os.PathLike[str]
    document: str
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    _file: Any
    _sum: str | None

    def check(self) -> None:
        """Read all tensors, and refuse a file that is not bit by bit what was written.

        Files of before there were digests have none to go by.
        """
        if self._sum is None:
            return
        if _digest(self.document, {name: self.tensor(name) for name in self.shapes}) != self._sum:
            raise cannot_read(self.path, "it is damaged: its content is not what was written")

    def tensor(self, name: str) -> Tensor:
        """Read a tensor, as a map of the file; :class:`SlimfastError` where PyTorch has no such tensor."""
        try:
            read: Tensor = self._file.get_tensor(name)
        # TypeError: a shape that PyTorch cannot hold.
        except (SafetensorError, OSError, TypeError) as error:
            raise cannot_read(self.path, f"{name}: {reason_of(error)}") from None
        return read


@contextmanager
def open_tensor_document(path: str | os.PathLike[str], kind: str) -> Iterator[TensorDocument]:
    """Open a file of :func:`write_tensor_document`; for any other :class:`SlimfastError`, which expected
    ``kind``.
    """
    if kind_of(check_file(path)) != "safetensors":
        raise cannot_read(path, f"expected {kind}, got a file of torch.save")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            metadata = file.metadata() or {}
            document = metadata.get(KEY)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise cannot_read(path, cut_short(path) or error) from None
        if document is None:
            raise cannot_read(path, f"expected {kind}, got other tensors")
        if metadata.keys() - {KEY, SUM}:
            raise cannot_read(path, f"expected {kind}, got one with {', '.join(sorted(metadata))}")
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        yield TensorDocument(path, document, shapes, dtypes, file, metadata.get(SUM))
