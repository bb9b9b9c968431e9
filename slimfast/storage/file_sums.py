"""Checksums of files of safetensors that are written tensor by tensor: in the header, of every byte there is.

The header comes first, when what follows is not known yet: it holds a place for the checksum, which counts as
zeros and is filled in at the end.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from slimfast.storage.atomic import cannot_read

# The entry of the header's metadata, and what stands there while the file is hashed.
FILE_SUM = "slimfast.sha256"
PLACE = "0" * 64
_CHUNK = 16 << 20


def place_in(header: bytes, stored: str) -> int:
    """Find where in the text of a header the checksum stands; -1 where it is not written as we write it."""
    before = f'"{FILE_SUM}":"'.encode()
    at = header.find(before + stored.encode() + b'"')
    return at + len(before) if at >= 0 else -1


def check_sum(path: Path, remedy: str) -> dict[str, str] | None:
    """Read a whole file of safetensors, and refuse one that is not byte by byte what was written.

    Returns the metadata of its header; None where there is no checksum in it. Raises :class:`SlimfastError`
    with the file's name and the ``remedy``.
    """
    try:
        with path.open("rb") as stream:
            first = stream.read(8)
            header = stream.read(int.from_bytes(first, "little"))
            metadata = json.loads(header).get("__metadata__", {})
            stored = metadata.get(FILE_SUM)
            if stored is None:
                return None
            at = place_in(header, stored)
            digest = hashlib.sha256(first)
            if at >= 0:
                header = header[:at] + PLACE.encode() + header[at + len(PLACE) :]
            digest.update(header)
            while part := stream.read(_CHUNK):
                digest.update(part)
    except OSError as error:
        raise cannot_read(path, error) from None
    except (ValueError, AttributeError, TypeError, MemoryError, OverflowError):
        # A length or a header that is none.
        raise cannot_read(path, f"it is damaged: its header is not what was written; {remedy}") from None
    if digest.hexdigest() != stored:
        raise cannot_read(path, f"it is damaged: its content is not what was written; {remedy}")
    return {str(name): str(value) for name, value in metadata.items()}
