"""One spectrum as bytes that say whether they are whole: what a sidecar is made of and what processes
exchange.

    magic (4) | length of the body (8) | SHA-256 of the body (32) | body
    body: length of the head (4) | head, JSON | eigenvalues, float64

All numbers are little-endian. What does not check is never taken for a record.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from slimfast.errors import SlimfastError
from slimfast.spectra.spectrum import Spectrum
from slimfast.storage.documents import parse_object

_MAGIC = b"SfS1"
_FRAME = struct.Struct("<4sQ32s")
_HEAD = struct.Struct("<I")


def encode(spectrum: Spectrum, labels: Mapping[str, str]) -> bytes:
    """Encode a spectrum and the strings that go with it as a record."""
    head = {
        "name": spectrum.name,
        "n": spectrum.n,
        "d": spectrum.d,
        # As text that gives the same float64 back, whatever its size.
        "trace": spectrum.trace.hex(),
        "error": spectrum.error.hex(),
        "dtype": spectrum.dtype,
        "scaling": spectrum.scaling,
        "member_scaling": spectrum.member_scaling,
        "labels": dict(labels),
    }
    text = json.dumps(head).encode()
    body = _HEAD.pack(len(text)) + text + spectrum.eigenvalues.astype("<f8").tobytes()
    return _FRAME.pack(_MAGIC, len(body), hashlib.sha256(body).digest()) + body


def decode(content: bytes, where: str) -> Iterator[tuple[Spectrum, dict[str, str], int]]:
    """Decode the records at the beginning of ``content``: spectrum, labels, and where in it the next one
    begins.

    It ends before the first bytes that are no whole record; ``where`` names the content in messages. A whole
    record whose spectrum no measurement gives raises :class:`SlimfastError`.
    """
    at = 0
    while len(content) - at >= _FRAME.size:
        magic, length, digest = _FRAME.unpack_from(content, at)
        body = content[at + _FRAME.size : at + _FRAME.size + length]
        if magic != _MAGIC or len(body) != length or hashlib.sha256(body).digest() != digest:
            return
        at += _FRAME.size + length
        spectrum, labels = _spectrum(body, f"{where}: record before byte {at}")
        yield spectrum, labels, at


def _spectrum(body: bytes, where: str) -> tuple[Spectrum, dict[str, str]]:
    if len(body) < _HEAD.size:
        raise SlimfastError(f"{where}: expected a record, got {len(body)} bytes")
    end = _HEAD.size + _HEAD.unpack_from(body)[0]
    if end > len(body) or (len(body) - end) % 8:
        raise SlimfastError(f"{where}: expected float64 eigenvalues from byte {end}, got {len(body)} bytes")
    fields = parse_object(body[_HEAD.size : end], where)
    held = fields.object("labels")
    labels = {name: held.string(name) for name in held.names()}
    dtype: Any = fields.string("dtype", ("float32", "float64"))
    scaling: Any = fields.string("scaling", ("raw", "unit"))
    try:
        trace, error = float.fromhex(fields.string("trace")), float.fromhex(fields.string("error"))
    except (ValueError, OverflowError) as problem:
        raise SlimfastError(f"{where}: {problem}") from None
    name, n, d = fields.string("name"), fields.integer("n", 1), fields.integer("d", 1)
    member_scaling = fields.boolean("member_scaling")
    fields.done()
    eigenvalues = np.frombuffer(body, dtype="<f8", offset=end).astype(np.float64)
    try:
        spectrum = Spectrum(name, n, d, eigenvalues, trace, error, dtype, scaling, member_scaling)
    except SlimfastError as wrong:
        raise SlimfastError(f"{where}: {wrong}") from None
    return spectrum, labels
