"""Calibrations in files: safetensors for moments and inputs, JSON in its metadata for the rest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.calibration.data import Calibration, Reading
from slimfast.calibration.forward import count_of
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import InputSpec, TensorSpec, map_leaves
from slimfast.kernels.dtypes import FLOATING
from slimfast.storage.documents import Fields, parse_object
from slimfast.storage.safetensors_writer import bytes_of
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

KIND = "slimfast.calibration.moments"
SCHEMA = 2
_PARTS = ("mean", "covariance", "norms")
_MOST_BYTES = float(1 << 60)
# Of these, what layers that read the same tensor have in common.
_SHARED = ("mean", "covariance")


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write a calibration, its inputs included, to a safetensors file, whole or not at all.

    Args:
        calibration: From :func:`slimfast.calibrate`.
        path: The file; one that is there is replaced.

    Raises:
        SlimfastError: Where it cannot be written.

    Example:
        slimfast.save_calibration(calibration, "calibration.safetensors")
    """
    tensors: dict[str, Tensor] = {}
    entries = []
    owners: dict[int, str] = {}
    for name, reading in calibration.readings.items():
        owner = owners.setdefault(id(reading.covariance), name)
        entries.append({"weight": name, "count": reading.count, "moments": owner})
        for part in _PARTS if owner == name else ("norms",):
            tensors[f"{part}:{name}"] = getattr(reading, part).contiguous()
    inputs, of_samples = write_samples(calibration.batches, calibration.masks)
    tensors |= of_samples
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "samples": calibration.samples,
        "bytes_held": calibration.bytes_held,
        "bytes_made": calibration.bytes_made,
        "readings": entries,
        "left": dict(calibration.left),
        "inputs": inputs,
    }
    write_tensor_document(path, json.dumps(document, allow_nan=False), tensors)


def load_file(path: str | os.PathLike[str], device: str) -> Calibration:
    """Load the calibration in a file of :func:`save_calibration`; its inputs are to be on this device."""
    shown = os.fspath(path)
    with open_tensor_document(path, "a calibration") as file:
        fields = parse_object(file.document, shown)
        tensors = {name: file.tensor(name) for name in file.shapes}
        file.check()
    schema = fields.schema(KIND, SCHEMA, oldest=1)
    # Each of the layers that read the same tensor gets the same moments, not a copy of them.
    whole = {name: tensor.double() for name, tensor in tensors.items() if name.partition(":")[0] in _PARTS}
    readings = [_reading(item, whole, tensors, schema) for item in fields.objects("readings")]
    left = fields.object("left")
    batches, masks = read_samples(fields.raw("inputs"), tensors, shown, device)
    found = Calibration(
        readings={reading.weight: reading for reading in readings},
        left={name: left.string(name) for name in left.names()},
        batches=batches,
        samples=fields.integer("samples", 1),
        masks=masks,
        bytes_held=fields.number("bytes_held", 0.0, _MOST_BYTES) if schema > 1 else 0.0,
        bytes_made=fields.number("bytes_made", 0.0, _MOST_BYTES) if schema > 1 else 0.0,
    )
    fields.done()
    return found


def write_samples(
    batches: Iterable[Arguments], masks: Iterable[Tensor | None]
) -> tuple[list[Any], dict[str, Tensor]]:
    """Put samples into JSON that describes them, and tensors by name."""
    inputs: list[Any] = []
    tensors: dict[str, Tensor] = {}
    for i, (args, kwargs) in enumerate(batches):
        inputs.append(InputSpec.of(kwargs or args).to_json())
        leaves = list(tensors_in((args, kwargs)))
        tensors |= {f"input:{i}:{j}": leaf.detach().cpu().clone() for j, leaf in enumerate(leaves)}
    for i, mask in enumerate(masks):
        if mask is not None:
            tensors[f"mask:{i}"] = mask.detach().cpu().contiguous()
    return inputs, tensors


def hash_samples(batches: Iterable[Arguments], masks: Iterable[Tensor | None]) -> str:
    """Hash samples, with what describes them."""
    inputs, tensors = write_samples(batches, masks)
    digest = hashlib.sha256(repr(inputs).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        for part in bytes_of(tensor):
            digest.update(part)
    return digest.hexdigest()


def read_samples(
    inputs: Any, tensors: Mapping[str, Tensor], shown: str, device: str
) -> tuple[tuple[Arguments, ...], tuple[Tensor | None, ...]]:
    """Take samples and their masks out of what :func:`write_samples` made of them."""
    batches = _batches(inputs, tensors, shown, device)
    masks = [_mask(tensors.get(f"mask:{i}"), batch, shown, device) for i, batch in enumerate(batches)]
    return batches, tuple(masks)


def _reading(
    fields: Fields, whole: Mapping[str, Tensor], stored: Mapping[str, Tensor], schema: int
) -> Reading:
    weight = fields.string("weight")
    owner = fields.string("moments") if schema > 1 else weight
    names = [f"{part}:{owner if part in _SHARED else weight}" for part in _PARTS]
    mean, covariance, norms = (_tensor(whole, name, fields.where) for name in names)
    length = mean.numel()
    shapes = (tuple(mean.shape), tuple(covariance.shape), tuple(norms.shape))
    if shapes != ((length,), (length, length), (length,)):
        raise SlimfastError(f"{fields.where}: moments of shapes {shapes} do not fit each other ({weight})")
    if not all(stored[name].dtype in FLOATING and bool(stored[name].isfinite().all()) for name in names):
        raise SlimfastError(f"{fields.where}: expected finite moments ({weight})")
    reading = Reading(weight, mean, covariance, norms, fields.integer("count", 1))
    fields.done()
    return reading


def _batches(inputs: Any, tensors: Mapping[str, Tensor], shown: str, device: str) -> tuple[Arguments, ...]:
    if not isinstance(inputs, list):
        raise SlimfastError(f"{shown}: inputs: expected a list")
    batches = []
    for i, item in enumerate(inputs):
        try:
            spec = InputSpec.from_json(item)
        except ArgumentError as error:
            raise SlimfastError(f"{shown}: inputs[{i}]: {error}") from None
        place = itertools.count()

        def read(leaf: Any, i: int = i, place: Any = place) -> Any:
            if not isinstance(leaf, TensorSpec):
                return leaf
            return _tensor(tensors, f"input:{i}:{next(place)}", shown).to(device)

        batches.append((map_leaves(spec.args, read), map_leaves(dict(spec.kwargs), read)))
    return tuple(batches)


def _mask(mask: Tensor | None, batch: Arguments, shown: str, device: str) -> Tensor | None:
    if mask is not None and (mask.dim() < 2 or len(mask) != count_of(batch)):
        raise SlimfastError(f"{shown}: a mask of shape {tuple(mask.shape)} is not of its inputs")
    return None if mask is None else mask.bool().to(device)


def _tensor(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise SlimfastError(f"{where}: no tensor {name!r}")
    return tensors[name]
