"""Spectra in files: safetensors for the eigenvalues, JSON in its metadata for the rest."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import torch

from slimfast.arrays import FloatArray
from slimfast.errors import SlimfastError, shown
from slimfast.spectra.spectrum import Spectrum
from slimfast.storage.atomic import cannot_read
from slimfast.storage.documents import Fields, parse_object
from slimfast.storage.tensor_documents import TensorDocument, open_tensor_document, write_tensor_document

KIND = "slimfast.spectra"
SCHEMA = 1


def save_spectra(spectra: Mapping[str, Spectrum], path: str | os.PathLike[str]) -> None:
    """Write spectra to a safetensors file, whole or not at all; their fields are JSON in its metadata.

    Args:
        spectra: From :func:`measure_spectra`.
        path: The file; one that is there is replaced.

    Raises:
        SlimfastError: Where it cannot be written.

    Example:
        slimfast.save_spectra(slimfast.measure_spectra(model, graph), "spectra.safetensors")
    """
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
    # Copies: what is negatively strided, or not to be written to, is no tensor's memory.
    tensors = {name: torch.from_numpy(s.eigenvalues.copy()) for name, s in spectra.items()}
    write_tensor_document(path, document, tensors)


def load_spectra(path: str | os.PathLike[str]) -> dict[str, Spectrum]:
    """Load the spectra in a file of :func:`save_spectra`.

    Args:
        path: The file.

    Returns:
        The spectra by group.

    Raises:
        SlimfastError: Naming a file that is none.

    Example:
        plan = slimfast.plan(model, example, macs=0.5, spectra=slimfast.load_spectra("spectra.safetensors"))
    """
    where = f"cannot read {os.fspath(path)}"
    with open_tensor_document(path, "a file of spectra") as file:
        fields = parse_object(file.document, where)
        tensors = {name: _eigenvalues(file, name) for name in file.shapes}
        file.check()
    fields.schema(KIND, SCHEMA)
    found = [_spectrum_from_json(item, tensors) for item in fields.objects("spectra")]
    fields.done()
    if sorted(s.name for s in found) != sorted(tensors):
        raise SlimfastError(f"{where}: expected one entry for each of {len(tensors)} spectra")
    return {s.name: s for s in found}


def _eigenvalues(file: TensorDocument, name: str) -> FloatArray:
    # Before it is read: NumPy has no array of some of the types that the format knows.
    if file.dtypes[name] != "F64" or len(file.shapes[name]) != 1:
        got = f"{file.dtypes[name]} of shape {shown(list(file.shapes[name]))}"
        raise cannot_read(file.path, f"{shown(name)}: expected a row of F64 eigenvalues, got {got}")
    # A copy, which does not change with the file.
    values: FloatArray = file.tensor(name).numpy().copy()
    return values


def _spectrum_from_json(fields: Fields, tensors: Mapping[str, FloatArray]) -> Spectrum:
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
