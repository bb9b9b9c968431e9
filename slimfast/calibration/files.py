"""Calibrations in files: safetensors for moments and inputs, JSON in its metadata for the rest."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.calibration.moments import Calibration, Reading
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import InputSpec, TensorSpec, map_leaves
from slimfast.kernels.dtypes import FLOATING
from slimfast.storage.documents import Fields, parse_object
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

KIND = "slimfast.calibration.moments"
SCHEMA = 1
_PARTS = ("mean", "covariance", "norms")


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
    for name, reading in calibration.readings.items():
        entries.append({"weight": name, "count": reading.count})
        tensors |= {f"{part}:{name}": getattr(reading, part).contiguous() for part in _PARTS}
    inputs = []
    for i, (args, kwargs) in enumerate(calibration.batches):
        inputs.append(InputSpec.of(kwargs or args).to_json())
        leaves = list(tensors_in((args, kwargs)))
        tensors |= {f"input:{i}:{j}": leaf.detach().cpu().clone() for j, leaf in enumerate(leaves)}
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "samples": calibration.samples,
        "readings": entries,
        "left": dict(calibration.left),
        "inputs": inputs,
    }
    write_tensor_document(path, json.dumps(document, allow_nan=False), tensors)


def load_calibration(path: str | os.PathLike[str], *, device: str = "cpu") -> Calibration:
    """Load the calibration in a file of :func:`save_calibration`.

    Args:
        path: The file.
        device: Where its inputs are to be.

    Returns:
        The calibration that was saved.

    Raises:
        SlimfastError: For another file.

    Example:
        calibration = slimfast.load_calibration("calibration.safetensors", device="cuda")
    """
    shown = os.fspath(path)
    with open_tensor_document(path, "a calibration") as file:
        fields = parse_object(file.document, shown)
        tensors = {name: file.tensor(name) for name in file.shapes}
    fields.schema(KIND, SCHEMA)
    readings = [_reading(item, tensors) for item in fields.objects("readings")]
    left = fields.object("left")
    inputs = fields.raw("inputs")
    found = Calibration(
        readings={reading.weight: reading for reading in readings},
        left={name: left.string(name) for name in left.names()},
        batches=_batches(inputs, tensors, shown, device),
        samples=fields.integer("samples", 1),
    )
    fields.done()
    return found


def _reading(fields: Fields, tensors: Mapping[str, Tensor]) -> Reading:
    weight = fields.string("weight")
    mean, covariance, norms = (_tensor(tensors, f"{part}:{weight}", fields.where) for part in _PARTS)
    length = mean.numel()
    shapes = (tuple(mean.shape), tuple(covariance.shape), tuple(norms.shape))
    if shapes != ((length,), (length, length), (length,)):
        raise SlimfastError(f"{fields.where}: moments of shapes {shapes} do not fit each other ({weight})")
    if not all(t.dtype in FLOATING and bool(t.isfinite().all()) for t in (mean, covariance, norms)):
        raise SlimfastError(f"{fields.where}: expected finite moments ({weight})")
    reading = Reading(weight, mean.double(), covariance.double(), norms.double(), fields.integer("count", 1))
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


def _tensor(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise SlimfastError(f"{where}: no tensor {name!r}")
    return tensors[name]
