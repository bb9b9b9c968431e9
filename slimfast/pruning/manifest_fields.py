"""Read the fields of a manifest's JSON document, each under the type it must have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from slimfast.arrays import IntArray, Shape
from slimfast.errors import SlimfastError, shown
from slimfast.graph.cutting.patches import Patch, plain
from slimfast.pruning.depth.shorter import Dropped, Fate
from slimfast.storage.documents import LARGEST, Fields

# What a cut, or a repair after it, does to values: it puts constants into biases, or solves for weights.
Change: TypeAlias = Literal["masks", "repair", "rotation"]
_CHANGES: tuple[str, ...] = get_args(Change)
_FATES: tuple[Fate, ...] = get_args(Fate)
# A branch returns no more than so many values.
_MOST_OUTPUTS = 64


def frozen(index: Any) -> IntArray:
    """Copy indices into an int64 array that cannot be written to."""
    array: IntArray = np.array(index, dtype=np.int64)
    array.flags.writeable = False
    return array


def index_from_json(value: object, where: str) -> IntArray:
    """Read a list of sorted, distinct indices."""
    if not isinstance(value, list) or any(type(i) is not int for i in value):
        raise SlimfastError(f"{where}: expected a list of integers, got {shown(value)}")
    if not value or value[0] < 0 or value[-1] > LARGEST or any(a >= b for a, b in itertools.pairwise(value)):
        raise SlimfastError(f"{where}: expected sorted, distinct indices, at least one, got {shown(value)}")
    return frozen(value)


def tensors_from_json(
    fields: Fields, kept: list[IntArray]
) -> tuple[dict[str, Shape], dict[str, dict[int, IntArray]]]:
    """Read the shapes of the tensors, and what was kept of each of their dims."""
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


def patch_from_json(fields: Fields) -> Patch:
    """Read one attribute that changed."""
    patch = Patch(
        fields.string("module"),
        fields.string("attribute"),
        _value(fields.raw("before"), fields.where),
        _value(fields.raw("after"), fields.where),
    )
    fields.done()
    first, *rest = patch.attribute.split(".")
    names = [first, *(part for part in rest if not part.isdecimal())]
    if not all(part.isidentifier() and not part.startswith("__") for part in names):
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


def moved_from_json(fields: Fields, shapes: Mapping[str, Shape]) -> dict[str, tuple[Change, ...]]:
    """Read which tensors hold more than slices, and what has changed them."""
    moved: dict[str, tuple[Change, ...]] = {}
    for name in fields.names():
        changes = fields.raw(name)
        if name not in shapes:
            raise SlimfastError(f"{fields.where}: expected the name of a tensor, got {shown(name)}")
        if not isinstance(changes, list) or not changes or any(change not in _CHANGES for change in changes):
            known = " or ".join(map(repr, _CHANGES))
            raise SlimfastError(f"{fields.where}: {name}: expected a list of {known}, got {shown(changes)}")
        moved[name] = tuple(changes)
    return moved


def widths_from_json(fields: Fields) -> dict[str, tuple[int, int]]:
    """Read the wide and the thin number of units of each group."""
    widths = {}
    for name in fields.names():
        pair = fields.integers(name, 1)
        if len(pair) != 2 or pair[1] > pair[0]:
            raise SlimfastError(f"{fields.where}: {name}: expected [wide, thin], got {list(pair)}")
        widths[name] = (pair[0], pair[1])
    return widths


def dropped_to_json(dropped: Iterable[Dropped]) -> list[dict[str, Any]]:
    """Write what a shorter network has not."""
    return [{"module": one.name, "fate": one.fate, "outputs": one.outputs} for one in dropped]


def dropped_from_json(items: Iterable[Fields]) -> tuple[Dropped, ...]:
    """Read what a shorter network has not, each module once."""
    found: dict[str, Dropped] = {}
    for item in items:
        name, fate = item.string("module"), item.string("fate")
        outputs = item.integer("outputs", 0, _MOST_OUTPUTS)
        item.done()
        known = next((one for one in _FATES if one == fate), None)
        if known is None:
            raise SlimfastError(f"{item.where}: expected {' or '.join(_FATES)}, got {shown(fate)}")
        if not name or name in found:
            raise SlimfastError(f"{item.where}: expected a module that is dropped once, got {shown(name)}")
        found[name] = Dropped(name, known, outputs)
    return tuple(found.values())
