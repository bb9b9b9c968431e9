"""What was kept of a thin network, as data that travels with the module and with its file."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from slimfast.arrays import IntArray, Shape
from slimfast.errors import SlimfastError, shown
from slimfast.graph.cutting.cut import select_indices, thin_shape
from slimfast.graph.cutting.patches import Patch, apply_patches, plain
from slimfast.graph.cutting.recurrent_layers import flatten_recurrent
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.storage.documents import LARGEST, Fields, parse_object

KIND = "slimfast.thin"
SCHEMA = 1
_ATTRIBUTE = "_slimfast_manifest"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What separates a thin network from the wide one it came from, however many times it was pruned.

    Attributes:
        shapes_before: The wide shape of every parameter and buffer, tied ones under their first name.
        keeps: For each cut tensor and dim, the sorted indices of the wide tensor that it holds.
        patches: The Python attributes that changed.
        widths: Group name -> (wide, thin) number of units.
        schema: The version of its JSON document.

    Example:
        kept = slimfast.manifest(thin)
        wide, left = kept.widths["layer1.0.conv1"]
        shape = kept.shapes()["layer1.0.conv1.weight"]
    """

    shapes_before: Mapping[str, Shape]
    keeps: Mapping[str, Mapping[int, IntArray]] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    schema: int = SCHEMA

    def shapes(self) -> dict[str, Shape]:
        """Compute the thin shape of every parameter and buffer."""
        return {
            name: thin_shape(shape, self.keeps.get(name, {})) for name, shape in self.shapes_before.items()
        }

    def slice_of(self, name: str, tensor: Tensor) -> Tensor:
        """Copy what is left of the wide tensor of that name."""
        return select_indices(tensor.detach(), self.keeps.get(name, {})).clone()

    def thin_copy(self, model: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> nn.Module:
        """Copy the wide ``model`` with these thin tensors, its attributes patched and this its manifest.

        Raises :class:`SlimfastError`, which names ``what`` the manifest is from, where an attribute does not
        hold what it held.
        """
        thin = copy_with(model, tensors)
        try:
            apply_patches(thin, self.patches)
        except SlimfastError as error:
            raise SlimfastError(f"{what}: {error}") from None
        flatten_recurrent(thin)
        attach(thin, self)
        return thin

    def to_json(self) -> str:
        """Write the manifest as a JSON document; index lists that many tensors share are written once."""
        kept: dict[tuple[int, ...], int] = {}
        tensors = {}
        for name, shape in self.shapes_before.items():
            dims = self.keeps.get(name, {})
            cut = {str(dim): kept.setdefault(tuple(index.tolist()), len(kept)) for dim, index in dims.items()}
            tensors[name] = {"shape": list(shape), "cut": cut}
        document = {
            "kind": KIND,
            "schema": self.schema,
            "tensors": tensors,
            "kept": [list(index) for index in kept],
            "patches": [
                {"module": p.module, "attribute": p.attribute, "before": p.before, "after": p.after}
                for p in self.patches
            ],
            "widths": {name: list(pair) for name, pair in self.widths.items()},
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str, *, what: str = "manifest") -> Manifest:
        """Read the manifest in a JSON document; one line of :class:`SlimfastError` for what is wrong."""
        fields = parse_object(text, what)
        fields.schema(KIND, SCHEMA)
        lists = fields.raw("kept")
        if not isinstance(lists, list):
            raise SlimfastError(f"{what}: kept: expected a list, got {shown(lists)}")
        kept = [_index(value, f"{what}: kept[{i}]") for i, value in enumerate(lists)]
        shapes, keeps = _tensors_from_json(fields.object("tensors"), kept)
        patches = tuple(_patch_from_json(item) for item in fields.objects("patches"))
        twice = [
            name for name, times in Counter((p.module, p.attribute) for p in patches).items() if times > 1
        ]
        if twice:
            raise SlimfastError(
                f"{what}: patches: expected one of each attribute, got two of {shown(twice[0])}"
            )
        widths = _widths_from_json(fields.object("widths"))
        fields.done()
        return Manifest(shapes, keeps, patches, widths)


def manifest(model: nn.Module) -> Manifest:
    """Tell what was kept of ``model``; of a network that was never pruned, everything.

    Args:
        model: A network, of :func:`slimfast.prune_channels` or not.

    Returns:
        Its manifest.

    Example:
        filters = slimfast.manifest(thin).keeps["layer1.0.conv1.weight"][0]   # which of the wide ones it has
    """
    found = getattr(model, _ATTRIBUTE, None)
    if isinstance(found, Manifest):
        return found
    return Manifest({name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()})


def attach(model: nn.Module, described: Manifest) -> None:
    """Make ``described`` the manifest of ``model``: a plain attribute, which copies and pickles keep."""
    setattr(model, _ATTRIBUTE, described)


def compose(first: Manifest, second: Manifest) -> Manifest:
    """Compose the manifest of a network pruned by ``first`` and then, as it was, by ``second``."""
    keeps: dict[str, dict[int, IntArray]] = {name: dict(dims) for name, dims in first.keeps.items()}
    for name, dims in second.keeps.items():
        cut = keeps.setdefault(name, {})
        for dim, index in dims.items():
            cut[dim] = frozen(cut[dim][index]) if dim in cut else index
    patches = {(p.module, p.attribute): p for p in first.patches}
    for p in second.patches:
        earlier = patches.get((p.module, p.attribute), p)
        patches[p.module, p.attribute] = Patch(p.module, p.attribute, earlier.before, p.after)
    widths = dict(first.widths)
    for name, (wide, thin) in second.widths.items():
        widths[name] = (widths.get(name, (wide, thin))[0], thin)
    return Manifest(first.shapes_before, keeps, tuple(patches[key] for key in sorted(patches)), widths)


def frozen(index: Any) -> IntArray:
    """Copy indices into an int64 array that cannot be written to."""
    array: IntArray = np.array(index, dtype=np.int64)
    array.flags.writeable = False
    return array


def _index(value: object, where: str) -> IntArray:
    if not isinstance(value, list) or any(type(i) is not int for i in value):
        raise SlimfastError(f"{where}: expected a list of integers, got {shown(value)}")
    if not value or value[0] < 0 or value[-1] > LARGEST or any(a >= b for a, b in itertools.pairwise(value)):
        raise SlimfastError(f"{where}: expected sorted, distinct indices, at least one, got {shown(value)}")
    return frozen(value)


def _tensors_from_json(
    fields: Fields, kept: list[IntArray]
) -> tuple[dict[str, Shape], dict[str, dict[int, IntArray]]]:
    shapes: dict[str, Shape] = {}
    keeps: dict[str, dict[int, IntArray]] = {}
    for name in fields.names():
        tensor = fields.object(name)
        shapes[name] = shape = tensor.integers("shape")
        cut = tensor.object("cut")
        tensor.done()
        for dim in cut.names():
            if dim not in map(str, range(len(shape))):
                raise SlimfastError(f"{cut.where}: expected a dim of shape {shown(shape)}, got {shown(dim)}")
            index = kept[cut.integer(dim, 0, len(kept) - 1)]
            if index[-1] >= shape[int(dim)]:
                raise SlimfastError(f"{cut.where}: expected indices below {shape[int(dim)]}, got {index[-1]}")
            keeps.setdefault(name, {})[int(dim)] = index
    return shapes, keeps


def _patch_from_json(fields: Fields) -> Patch:
    patch = Patch(
        fields.string("module"),
        fields.string("attribute"),
        _value(fields.raw("before"), fields.where),
        _value(fields.raw("after"), fields.where),
    )
    fields.done()
    if not all(part.isidentifier() and not part.startswith("__") for part in patch.attribute.split(".")):
        raise SlimfastError(
            f"{fields.where}: expected the name of an attribute, got {shown(patch.attribute)}"
        )
    if _types(patch.before) != _types(patch.after):
        raise SlimfastError(
            f"{fields.where}: expected {patch.attribute} of one type before and after, "
            f"got {shown(patch.before)} and {shown(patch.after)}"
        )
    for before, after in zip(_flat(patch.before), _flat(patch.after), strict=True):
        # A cut makes lengths shorter, and changes nothing else.
        if before != after and not (type(before) is int and 0 <= after < before):
            raise SlimfastError(
                f"{fields.where}: expected {patch.attribute} to be a length that a cut makes shorter, got "
                f"{shown(before)} and {shown(after)}"
            )
    return patch


def _flat(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _value(value: object, where: str) -> Any:
    plainly = plain(value)
    flat = _flat(plainly)
    # An attribute of a stranger's file is set on a module: numbers and words only, as surgery writes them.
    if any(item is not None and not isinstance(item, (int, float, str)) for item in flat):
        raise SlimfastError(f"{where}: expected plain values, got {shown(value)}")
    return plainly


def _types(value: object) -> list[type]:
    return [tuple, *map(type, value)] if isinstance(value, tuple) else [type(value)]


def _widths_from_json(fields: Fields) -> dict[str, tuple[int, int]]:
    widths = {}
    for name in fields.names():
        pair = fields.integers(name, 1)
        if len(pair) != 2 or pair[1] > pair[0]:
            raise SlimfastError(f"{fields.where}: {name}: expected [wide, thin], got {list(pair)}")
        widths[name] = (pair[0], pair[1])
    return widths
