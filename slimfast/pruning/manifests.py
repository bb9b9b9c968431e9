"""What was kept of a thin network, as data that travels with the module and with its file."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from slimfast.arrays import IntArray, Shape
from slimfast.errors import SlimfastError, shown
from slimfast.graph.cutting.cut import select_indices, thin_shape
from slimfast.graph.cutting.hooked_weights import make_hooked
from slimfast.graph.cutting.patches import Patch, apply_patches
from slimfast.graph.cutting.recurrent_layers import flatten_recurrent
from slimfast.graph.recording.module_copies import aliases, copy_with, named_tensors
from slimfast.pruning.depth.shorter import Dropped, shorten
from slimfast.pruning.manifest_fields import (
    Change,
    dropped_from_json,
    dropped_to_json,
    frozen,
    index_from_json,
    moved_from_json,
    patch_from_json,
    tensors_from_json,
    widths_from_json,
)
from slimfast.storage.documents import parse_object

__all__ = ["Manifest", "attach", "check_values", "compose", "frozen", "manifest"]

KIND = "slimfast.thin"
# Of 2: which tensors hold more than slices; of 3: the layers that were dropped.
SCHEMA = 3
_OLDEST = 1
_ATTRIBUTE = "_slimfast_manifest"
_PART = "_slimfast_part"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What separates a thin network from the wide one it came from, however many times it was pruned.

    Attributes:
        shapes_before: The wide shape of every parameter and buffer, tied ones under their first name.
        keeps: For each cut tensor and dim, the sorted indices of the wide tensor that it holds.
        patches: The Python attributes that changed.
        widths: Group name -> (wide, thin) number of units.
        moved: The tensors that may hold other values than the slices of the wide ones, and what has changed
            them, in order: ``"masks"``, whose dead units left constants to them, ``"rotation"`` or
            ``"repair"``. What is cut from other weights by this manifest has the slices alone.
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
    moved: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    schema: int = SCHEMA

    def shapes(self) -> dict[str, Shape]:
        """Compute the thin shape of every parameter and buffer."""
        return {
            name: thin_shape(shape, self.keeps.get(name, {})) for name, shape in self.shapes_before.items()
        }

    def slice_of(self, name: str, tensor: Tensor) -> Tensor:
        """Copy what is left of the wide tensor of that name."""
        return select_indices(tensor.detach(), self.keeps.get(name, {})).clone()

    def shortened(self, model: nn.Module) -> nn.Module:
        """Copy the deep ``model`` without the layers that were dropped, tensors shared; it itself where none
        were.
        """
        if not self.dropped:
            return model
        short = copy_with(model, {}, share=True)
        shorten(short, self.dropped)
        return short

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
        make_hooked(thin)
        flatten_recurrent(thin)
        attach(thin, self)
        return thin

    def inside(self, path: str, model: nn.Module, tied: Mapping[str, str]) -> Manifest:
        """Describe the part ``model`` at ``path`` of the network, by its own names.

        ``tied``: the first name in the network of each tensor that has several.
        """
        start = f"{path}."
        names = {name: tied.get(start + name, start + name) for name in named_tensors(model)}
        held = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        return Manifest(
            {name: self.shapes_before.get(whole, held[name]) for name, whole in names.items()},
            {name: self.keeps[whole] for name, whole in names.items() if whole in self.keeps},
            tuple(
                replace(p, module=p.module[len(start) :])
                for p in self.patches
                if f"{p.module}.".startswith(start)
            ),
            {name[len(start) :]: pair for name, pair in self.widths.items() if name.startswith(start)},
            {name: self.moved[whole] for name, whole in names.items() if whole in self.moved},
            tuple(replace(d, name=d.name[len(start) :]) for d in self.dropped if d.name.startswith(start)),
        )

    def around(self, path: str) -> Manifest:
        """Describe the same by the names that it has at ``path`` of another network."""
        return Manifest(
            {f"{path}.{name}": shape for name, shape in self.shapes_before.items()},
            {f"{path}.{name}": cut for name, cut in self.keeps.items()},
            tuple(replace(p, module=f"{path}.{p.module}" if p.module else path) for p in self.patches),
            {f"{path}.{name}": pair for name, pair in self.widths.items()},
            {f"{path}.{name}": changes for name, changes in self.moved.items()},
            tuple(replace(one, name=f"{path}.{one.name}") for one in self.dropped),
        )

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
            "moved": {name: list(changes) for name, changes in self.moved.items()},
            "dropped": dropped_to_json(self.dropped),
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str, *, what: str = "manifest") -> Manifest:
        """Read the manifest in a JSON document; one line of :class:`SlimfastError` for what is wrong."""
        fields = parse_object(text, what)
        version = fields.schema(KIND, SCHEMA, oldest=_OLDEST)
        lists = fields.raw("kept")
        if not isinstance(lists, list):
            raise SlimfastError(f"{what}: kept: expected a list, got {shown(lists)}")
        kept = [index_from_json(value, f"{what}: kept[{i}]") for i, value in enumerate(lists)]
        shapes, keeps = tensors_from_json(fields.object("tensors"), kept)
        patches = tuple(patch_from_json(item) for item in fields.objects("patches"))
        twice = [
            name for name, times in Counter((p.module, p.attribute) for p in patches).items() if times > 1
        ]
        if twice:
            raise SlimfastError(
                f"{what}: patches: expected one of each attribute, got two of {shown(twice[0])}"
            )
        widths = widths_from_json(fields.object("widths"))
        moved = moved_from_json(fields.object("moved"), shapes) if version > 1 else {}
        dropped = dropped_from_json(fields.objects("dropped")) if version > 2 else ()
        fields.done()
        return Manifest(shapes, keeps, patches, widths, moved, dropped)


def manifest(model: nn.Module) -> Manifest:
    """Tell what was kept of ``model``; of a network that was never pruned, everything.

    Args:
        model: A network, of :func:`slimfast.prune_channels` or not.

    Returns:
        Its manifest.

    Example:
        filters = slimfast.manifest(thin).keeps["layer1.0.conv1.weight"][0]   # which of the wide ones it has
    """
    found = _attached(model)
    if found is not None:
        return found
    # What is not thin itself may hold what is: a wrapper around it.
    parts = [described.around(path) for path, described in _thin_parts(model, "", set())]
    tied = aliases(model)
    return Manifest(
        {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        | {tied.get(name, name): shape for part in parts for name, shape in part.shapes_before.items()},
        {tied.get(name, name): cut for part in parts for name, cut in part.keeps.items()},
        tuple(patch for part in parts for patch in part.patches),
        {name: pair for part in parts for name, pair in part.widths.items()},
        {tied.get(name, name): changes for part in parts for name, changes in part.moved.items()},
        tuple(one for part in parts for one in part.dropped),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The place of a module in a thin network, whose manifest says what was kept of it."""

    whole: Manifest
    path: str
    tied: Mapping[str, str]


def _attached(model: nn.Module) -> Manifest | None:
    """Find the manifest that a module has for itself or as a part of a thin network."""
    found, part = vars(model).get(_ATTRIBUTE), vars(model).get(_PART)
    if isinstance(found, Manifest):
        return found
    return part.whole.inside(part.path, model, part.tied) if isinstance(part, _Part) else None


def _thin_parts(model: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, Manifest]]:
    """Find the outermost modules that have a manifest, each once."""
    for name, child in model.named_children():
        if id(child) in seen:
            continue
        seen.add(id(child))
        described = _attached(child)
        if described is None:
            yield from _thin_parts(child, f"{path}{name}.", seen)
        else:
            yield f"{path}{name}", described


def attach(model: nn.Module, described: Manifest) -> None:
    """Make ``described`` the manifest of ``model``: plain attributes, which copies and pickles keep.

    Each of its modules knows its place, so that what a wrapper held can be saved alone.
    """
    tied = aliases(model)
    for path, module in model.named_modules():
        part = _Part(described, path, tied)
        object.__setattr__(module, *((_PART, part) if path else (_ATTRIBUTE, described)))


def check_values(moved: Mapping[str, tuple[Change, ...]], what: str) -> None:
    """Refuse the cut of other weights to which the constants of dead units, or a rotation, are missing; where
    a repair is, it warns. ``moved``: which tensors are more than slices; ``what`` is cut.
    """
    kinds = ("rotation", "masks", "repair")
    turned, folded, repaired = ([name for name, all_ in moved.items() if kind in all_] for kind in kinds)
    if folded:
        raise SlimfastError(
            f"{what}: expected a cut of weights alone, got one of masks, whose dead units left constants to "
            f"{len(folded)} tensors ({folded[0]}) that these weights have not; load them into the wide "
            "network and make a plan of their own masks (slimfast.plan_from_masks)"
        )
    if turned:
        raise SlimfastError(
            f"{what}: expected a cut of weights alone, got one of rotated heads ({turned[0]})"
        )
    if repaired:
        warnings.warn(
            f"{what}: {len(repaired)} tensors ({repaired[0]}) were solved for by a repair of other weights: "
            "of these the slices are kept",
            stacklevel=3,
        )


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
    moved = dict(first.moved)
    for name, changes in second.moved.items():
        moved[name] = moved.get(name, ()) + changes
    ordered = tuple(patches[key] for key in sorted(patches))
    return Manifest(first.shapes_before, keeps, ordered, widths, moved, first.dropped)
