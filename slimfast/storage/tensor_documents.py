"""Safetensors files with a document of ours in the header: tensors, and the JSON that says what they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimfast.arrays import Shape
from slimfast.storage.atomic import atomic_path, cannot_read, check_file, reason_of

# The entry of the header's metadata that holds the document.
KEY = "slimfast"


def write_tensor_document(path: str | os.PathLike[str], document: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a document and contiguous tensors to a file, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata={KEY: document})


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
    check_file(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            document = (file.metadata() or {}).get(KEY)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise cannot_read(path, error) from None
        if document is None:
            raise cannot_read(path, f"expected {kind}, got other tensors")
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        yield TensorDocument(path, document, shapes, dtypes, file)
