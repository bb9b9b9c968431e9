"""Which attributes of a configuration say what was cut, found by trial.

Some of the configuration's integers are changed, and the class is built on tensors without data.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, Shape
from slimfast.errors import UnsupportedGraph
from slimfast.graph.cutting.patches import Patch, read_attribute
from slimfast.graph.recording.forward import Ref, record
from slimfast.graph.recording.network import Network
from slimfast.huggingface.stock import (
    Changes,
    Place,
    StockShapes,
    built_with_buffers,
    built_without_data,
    changed_config,
    config_of,
    leaves,
    shapes_of,
)

# Sets of changes put in order; the last attributes of a configuration with more of them stay as they are.
_MAX_SETS = 256


@dataclass(frozen=True, slots=True)
class Described:
    """The configuration of a thin network; None where there is none, with ``why``."""

    config: Any | None
    why: str = ""


def find_config(
    thin: nn.Module,
    before: Mapping[str, Shape],
    patches: Sequence[Patch],
    inputs: Sequence[Arguments],
    *,
    buffers: Mapping[str, Tensor],
    shapes: StockShapes | None = None,
) -> Described:
    """Find the configuration with which the class of ``thin`` is ``thin``.

    Tried are the integers of the configuration that were the length of something that changed, or divide one
    (the number of heads), then attributes without a value (GPT-2's ``n_inner``) too. The class it makes must
    have the tensors of ``thin``, its patched attributes, the values of the buffers that no file holds, and
    run the same operations with the same arguments on all of ``inputs``. Values of other tensors do not
    matter; they may be on the meta device.

    Args:
        thin: The network, with the configuration of the wide one.
        before: The shapes in the wide network.
        patches: The attributes of modules that changed since.
        inputs: The arguments of each call.
        buffers: The values of the buffers that the class computes (:func:`unsaved_buffers`).
        shapes: What is known of the class already.
    """
    search = _Search(thin, dict(before), patches, shapes or StockShapes(thin))
    name = type(thin).__name__
    why = f"no attributes of {type(config_of(thin)).__name__} make a {name} of these shapes"
    wanted: list[list[_Operation]] | None = None
    for changes in search.choices():
        if not search.may_fit(changes):
            continue
        config = changed_config(config_of(thin), changes)
        stock = built_without_data(thin, config)
        if stock is None or not search.fits(stock):
            continue
        said = ", ".join(f"{'.'.join(map(str, place))}={new}" for place, new in changes.items())
        if (other := _other_buffer(thin, config, buffers)) is not None:
            why = f"with {said} a {name} computes other values of {other}, which no file of weights holds"
            continue
        try:
            wanted = wanted or [_operations(thin, call) for call in inputs]
        except UnsupportedGraph as error:
            return Described(None, f"it cannot be run at these widths: {error}")
        try:
            difference = _first_difference(wanted, [_operations(stock, call) for call in inputs])
        except UnsupportedGraph as error:
            difference = str(error)
        if difference is None:
            return Described(config)
        why = f"with {said} a {name} computes something else: {difference}"
    return Described(None, why)


def _other_buffer(thin: nn.Module, config: Any, buffers: Mapping[str, Tensor]) -> str | None:
    """Name the first buffer that the class fills with other values than it should have; None for none."""
    known = {name: buffer for name, buffer in buffers.items() if not buffer.is_meta}
    stock = built_with_buffers(thin, config) if known else None
    if stock is None:
        return None
    found = dict(stock.named_buffers(remove_duplicate=False))
    for name, value in known.items():
        made = found.get(name)
        if made is not None and not made.is_meta and not torch.equal(made.to(value), value):
            return name
    return None


class _Search:
    """What is looked for: the shapes and attributes of ``thin``, whose configuration is the wide one's."""

    def __init__(
        self, thin: nn.Module, before: dict[str, Shape], patches: Sequence[Patch], shapes: StockShapes
    ) -> None:
        self._thin = thin
        self._before = before
        self._after = shapes_of(thin)
        self._patches = patches
        self._shapes = shapes
        self._wanted = self._touched(self._after)

    def fits(self, stock: nn.Module) -> bool:
        return shapes_of(stock) == self._after and all(
            read_attribute(stock.get_submodule(patch.module), patch.attribute) == patch.after
            for patch in self._patches
        )

    def may_fit(self, changes: Changes) -> bool:
        """Say whether these changes may make the wanted shapes, from what each of them does alone.

        Building a class of many layers takes long. What a change does only together with others is not known.
        """
        touched: Counter[tuple[str, int]] = Counter()
        for change in changes.items():
            shapes = self._shapes.at(dict([change]))
            if shapes is None or shapes.keys() != self._before.keys():
                return True
            touched.update(self._touched(shapes))
        return self._wanted <= touched.keys() and all(
            times > 1 for dim, times in touched.items() if dim not in self._wanted
        )

    def _touched(self, shapes: Mapping[str, Shape]) -> set[tuple[str, int]]:
        """List the dims whose lengths differ from those in the wide network."""
        return {
            (name, dim)
            for name, was in self._before.items()
            for dim, (old, new) in enumerate(zip(was, shapes[name], strict=True))
            if old != new
        }

    def choices(self) -> Iterator[dict[Place, int]]:
        """List sets of changes to try, the likely ones first, few where nothing can be found."""
        given: dict[Place, list[tuple[int, int | None]]] = {}
        empty = []
        for place, value in leaves(config_of(self._thin).to_dict()):
            if str(place[-1]).endswith("token_id"):
                continue
            if value is None:
                empty.append(place)
            elif value > 1:
                given[place] = self._useful(place, self._candidates(value))
        missing = self._missing({(p, new) for p, news in given.items() for _, new in news if new is not None})
        options = {place: news for place, news in given.items() if len(news) > 1}
        yield from _sets(options)
        for place in empty:
            for _, new in self._useful(place, [(3, length) for length in sorted(missing)], given=False):
                if new is not None:
                    yield from _sets({**options, place: [(3, new)]})

    def _candidates(self, value: int) -> list[tuple[int, int]]:
        """List (penalty, new value): what the length became somewhere, or what a divisor of a length becomes
        with it.
        """
        same: set[int] = set()
        parts: set[int] = set()
        for old, new in self._changes():
            if old == value:
                same.add(new)
            elif old % value == 0 and value * new % old == 0:
                parts.add(value * new // old)
        return [(0, new) for new in sorted(same)] + [(2, new) for new in sorted(parts - same)]

    def _changes(self) -> set[tuple[int, int]]:
        pairs = [
            pair for name in self._before for pair in zip(self._before[name], self._after[name], strict=True)
        ]
        for patch in self._patches:
            old, new = patch.before, patch.after
            pairs += zip(old, new, strict=True) if isinstance(old, tuple) else [(old, new)]
        return {(old, new) for old, new in pairs if type(old) is int and type(new) is int and old != new}

    def _useful(
        self, place: Place, candidates: Iterable[tuple[int, int]], *, given: bool = True
    ) -> list[tuple[int, int | None]]:
        """Choose the candidates that do not only harm, and to leave the attribute as it is.

        One of no effect may be a number of heads; not so where the attribute had no value before (``given``).
        """
        found: list[tuple[int, int | None]] = []
        for penalty, new in candidates:
            shapes = self._shapes.at({place: new})
            right, wrong = self._effect(shapes)
            # Other tensors, or none at all, may come of an attribute that must change together with another;
            # but one that only takes tensors away is a number of layers.
            apart = shapes is None or shapes.keys() != self._before.keys()
            fewer = shapes is not None and shapes.keys() < self._before.keys()
            if right or (apart and not fewer) or (given and not wrong and not fewer):
                found.append((penalty + 2 * apart, new))
        return [*found, (1, None)]

    def _effect(self, shapes: dict[str, Shape] | None) -> tuple[set[int], set[int]]:
        """Find the wanted lengths that these shapes bring about, and those that they spoil."""
        right: set[int] = set()
        wrong: set[int] = set()
        for name, shape in (shapes or {}).items():
            was, wanted = self._before.get(name, ()), self._after.get(name, ())
            for now, before, after in zip(shape, was, wanted, strict=False):
                if now == after != before:
                    right.add(after)
                elif now != after == before:
                    wrong.add(after)
        return right, wrong

    def _missing(self, changes: set[tuple[Place, int]]) -> set[int]:
        """Find lengths that an attribute without a value may have to give: changed ones, and what one
        spoils.
        """
        spoiled = [self._effect(self._shapes.at({place: new}))[1] for place, new in changes]
        return {new for _, new in self._changes()}.union(*spoiled)


def _sets(options: Mapping[Place, Sequence[tuple[int, int | None]]]) -> Iterator[dict[Place, int]]:
    """Choose one value, or none, for each place; sets of the least summed penalty come first."""
    kept = dict(options)
    while math.prod(map(len, kept.values())) > _MAX_SETS:
        kept.popitem()
    named = [[(penalty, place, new) for penalty, new in news] for place, news in kept.items()]
    every = sorted(itertools.product(*named), key=lambda picks: sum(penalty for penalty, _, _ in picks))
    for picks in every:
        yield {place: new for _, place, new in picks if new is not None}


_Operation = tuple[str, str, list[tuple[str, Any]]]


def _operations(module: nn.Module, inputs: Arguments) -> list[_Operation]:
    """List what a forward runs: each operation with its arguments, of tensors only the shapes."""

    def shown(value: Any) -> Any:
        if isinstance(value, Ref):
            return value.shape
        return [shown(item) for item in value] if isinstance(value, (list, tuple)) else value

    return [
        (call.op, call.module, [(name, shown(value)) for name, value in call.arguments.items()])
        for call in record(Network.of(module), *inputs).calls
    ]


def _first_difference(
    wanted: Sequence[Sequence[_Operation]], got: Sequence[Sequence[_Operation]]
) -> str | None:
    """Say in which operation two networks differ first; None where they do not."""
    for ours, theirs in zip(wanted, got, strict=True):
        for a, b in itertools.zip_longest(ours, theirs):
            if a == b:
                continue
            if a is None or b is None or a[:2] != b[:2]:
                op, module, _ = a or b
                return f"other operations from {op} at {module or 'the model itself'} on"
            name, mine, other = next(
                (name, x, y) for (name, x), (_, y) in zip(a[2], b[2], strict=True) if x != y
            )
            return f"{name} of {a[0]} at {a[1] or 'the model itself'} is {other} and not {mine}"
    return None
