"""Spectra in files: safetensors for the eigenvalues, JSON in its metadata for the rest."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slimfast.errors import SlimfastError, shown
from slimfast.spectra.spectrum import Spectrum
from slimfast.storage.atomic import atomic_path, cannot_read, check_file
from slimfast.storage.documents import Fields, parse_object

KIND = "slimfast.spectra"
SCHEMA = 1


def save_spectra(spectra: Mapping[str, Spectrum], path: str | os.PathLike[str]) -> None:
    """Write spectra to a safetensors file, whole or not at all; their fields are JSON in its metadata."""
    entries = [
        {
            "name": name,
            "n": s.n,
            "d": s.d,
            "trace": s.trace,
            "error": s.error,
            "dtype": s.dtype,
            "scaling": s.scaling,
            "member_scaling": s.member_scaling,
        }
        for name, s in spectra.items()
    ]
    document = json.dumps({"kind": KIND, "schema": SCHEMA, "spectra": entries}, allow_nan=False)
    tensors = {name: np.ascontiguousarray(s.eigenvalues) for name, s in spectra.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"slimfast": document})


def load_spectra(path: str | os.PathLike[str]) -> dict[str, Spectrum]:
    """The spectra in a file of :func:`save_spectra`; :class:`SlimfastError` naming a file that is none."""
    where = f"cannot read {check_file(path)}"
    try:
        document, tensors = _read(path, where)
    except (SafetensorError, OSError, TypeError) as error:
        raise cannot_read(path, error) from None
    fields = parse_object(document, where)
    fields.schema(KIND, SCHEMA)
    found = [_spectrum_from_json(item, tensors) for item in fields.objects("spectra")]
    fields.done()
    if sorted(s.name for s in found) != sorted(tensors):
        raise SlimfastError(f"{where}: expected one entry for each of {len(tensors)} spectra")
    return {s.name: s for s in found}


def _read(path: str | os.PathLike[str], where: str) -> tuple[str, dict[str, Any]]:
    """The JSON document and the eigenvalues by name."""
    with safe_open(path, framework="np") as file:
        document = (file.metadata() or {}).get("slimfast")
        if document is None:
            raise SlimfastError(f"{where}: expected a file of spectra, got other tensors")
        names = file.keys()
        for name in names:
            # Before it is read: NumPy has no array of some of the types and shapes that the format knows.
            part = file.get_slice(name)
            if part.get_dtype() != "F64" or len(part.get_shape()) != 1:
                got = f"{part.get_dtype()} of shape {shown(part.get_shape())}"
                raise SlimfastError(f"{where}: {shown(name)}: expected a row of F64 eigenvalues, got {got}")
        return document, {name: file.get_tensor(name) for name in names}


def _spectrum_from_json(fields: Fields, tensors: Mapping[str, Any]) -> Spectrum:
    name = fields.string("name")
    if name not in tensors:
        raise SlimfastError(f"{fields.where}: no eigenvalues of {shown(name)}")
    dtype: Any = fields.string("dtype", ("float32", "float64"))
    scaling: Any = fields.string("scaling", ("raw", "unit"))
    n, d = fields.integer("n", 1), fields.integer("d", 1)
    trace, error = fields.number("trace", 0.0, math.inf), fields.number("error", 0.0, 1.0)
    member_scaling = fields.boolean("member_scaling")
    fields.done()
    try:
        return Spectrum(name, n, d, tensors[name], trace, error, dtype, scaling, member_scaling)
    except SlimfastError as wrong:
        raise SlimfastError(f"{fields.where}: {wrong}") from None
