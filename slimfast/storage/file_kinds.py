"""What a file is, by its first bytes: names say little of files from the wild."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Literal

from slimfast.storage.atomic import cannot_read

Kind = Literal["safetensors", "archive", "pickle"]

# More than the header of any network: what begins like one and says more is something else.
_LONGEST_HEADER = 1 << 30
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# How other files begin, and what to say of them.
_OTHERS = (
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the weights: run 'git lfs pull' where it lies",
    ),
    (b"\x89HDF\r\n", "it is an HDF5 file, as Keras writes them"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x1f\x8b", "it is packed by gzip: unpack it first"),
    (b"\x93NUMPY", "it is a NumPy array without a name"),
    (b"<", "it is a web page or XML, not weights: was the download refused?"),
)


def kind_of(path: Path) -> Kind:
    """Say how the tensors of a file are to be read.

    :class:`SlimfastError` names what it is instead where they cannot be: a pointer of Git LFS, TorchScript, a
    file cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise cannot_read(path, error) from None
    if not head:
        raise cannot_read(path, "the file is empty")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= _LONGEST_HEADER:
        if size < 8 + length:
            raise cannot_read(
                path, f"the file is truncated: {8 + length:,} bytes of header, {size:,} of them here"
            )
        return "safetensors"
    if head.startswith(_ZIP):
        _check_archive(path)
        return "archive"
    if head.startswith(_PICKLE):
        return "pickle"
    for start, what in _OTHERS:
        if head.lstrip().startswith(start):
            raise cannot_read(path, what)
    if head[257:262] == b"ustar":
        raise cannot_read(path, "it is a tar archive: unpack it first")
    # Some header, sound or not, of the format that the name says.
    if path.name.endswith(".safetensors"):
        return "safetensors"
    raise cannot_read(path, "expected a file of safetensors or of torch.save, got neither")


def cut_short(path: str | os.PathLike[str]) -> str | None:
    """Say how much of a file of safetensors is missing; None where nothing is, or its header is no help."""
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole, size = 8 + length + max(ends, default=0), os.path.getsize(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return f"the file is truncated: expected {whole:,} bytes, got {size:,}" if size < whole else None


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is cut short, or that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise cannot_read(path, "the file is truncated: the end of its archive is missing") from None
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise cannot_read(path, error) from None
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        raise cannot_read(
            path, "it is a TorchScript archive, code and all: save the state_dict() of the model"
        )
    if "archive_format" in inside or "serialized_exported_program.json" in names:
        raise cannot_read(path, "it is an exported program (.pt2), code and all: give the model's weights")
    if names and all(name.endswith(".npy") for name in names):
        raise cannot_read(path, "it is a NumPy archive (.npz): data, or weights of another library")
