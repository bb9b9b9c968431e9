"""Which attributes of a configuration say what was cut, found by trial.

Some of the configuration's integers are changed, and the class is built on tensors without data.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from slimfast.arrays import Arguments, Shape
from slimfast.graph.cutting.patches import Patch, read_attribute
from slimfast.graph.recording.forward import PROCESS_LOCK, Ref, record
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.graph.recording.network import Network

# A place in a configuration: attribute names and indices of lists.
Place: TypeAlias = tuple[str | int, ...]

# Sets of changes put in order; the last attributes of a configuration with more of them stay as they are.
_MAX_SETS = 256


def find_config(
    thin: nn.Module, before: Mapping[str, Shape], patches: Sequence[Patch], inputs: Arguments
) -> Any | None:
    """Find the configuration with which the class of ``thin`` is ``thin``; None where there is none.

    ``before``: the shapes in the wide network; ``patches``: the attributes of modules that changed since.
    Tried are the integers of the configuration that were the length of something that changed, or divide one
    (the number of heads), then attributes without a value (GPT-2's ``n_inner``) too. The class it makes must
    have the tensors of ``thin``, its patched attributes, and run the same operations with the same arguments
    on ``inputs``. Values of tensors do not matter; they may be on the meta device.
    """
    search = _Search(thin, dict(before), patches)
    wanted = None
    for changes in search.choices():
        config = changed_config(config_of(thin), changes)
        stock = None if config is None else built_without_data(thin, config)
        if stock is None or not search.fits(stock):
            continue
        wanted = wanted or _operations(thin, inputs)
        if _operations(stock, inputs) == wanted:
            return config
    return None


class _Search:
    """What is looked for: the shapes and attributes of ``thin``, whose configuration is the wide one's."""

    def __init__(self, thin: nn.Module, before: dict[str, Shape], patches: Sequence[Patch]) -> None:
        self._thin = thin
        self._before = before
        self._after = shapes_of(thin)
        self._patches = patches

    def fits(self, stock: nn.Module) -> bool:
        return shapes_of(stock) == self._after and all(
            read_attribute(stock.get_submodule(patch.module), patch.attribute) == patch.after
            for patch in self._patches
        )

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
            for _, new in self._useful(place, [(3, length) for length in sorted(missing)]):
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

    def _useful(self, place: Place, candidates: Iterable[tuple[int, int]]) -> list[tuple[int, int | None]]:
        """Choose the candidates that do not only harm, and to leave the attribute as it is."""
        found: list[tuple[int, int | None]] = []
        for penalty, new in candidates:
            shapes = self._alone(place, new)
            right, wrong = self._effect(shapes)
            # Other tensors, or none at all, may come of an attribute that must change together with another.
            apart = shapes is None or shapes.keys() != self._before.keys()
            if apart or right or not wrong:
                found.append((penalty + 2 * apart, new))
        return [*found, (1, None)]

    def _alone(self, place: Place, new: int) -> dict[str, Shape] | None:
        """Find the shapes that one change makes; None where the class takes it only together with others."""
        config = changed_config(config_of(self._thin), {place: new})
        stock = None if config is None else built_without_data(self._thin, config)
        return None if stock is None else shapes_of(stock)

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
        spoiled = [self._effect(self._alone(place, new))[1] for place, new in changes]
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


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Return the shape of every parameter and buffer by its first name."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, int | None]]:
    """List the integers of a configuration's dict, and what has no value, each with its place."""
    if type(value) is int or value is None:
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*place, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, (*place, index))


def changed_config(config: Any, changes: Mapping[Place, int]) -> Any | None:
    """Change these values in a copy of the configuration; None where it does not take them."""
    changed = copy.deepcopy(config)
    try:
        for place, new in changes.items():
            owner = changed
            for step in place[:-1]:
                owner = _item(owner, step)
            if isinstance(owner, (dict, list)):
                owner[place[-1]] = new  # type: ignore[index]
            else:
                setattr(owner, str(place[-1]), new)
        if hasattr(changed, "validate"):
            changed.validate()
    # What a configuration raises for sizes that do not go together is its own choice.
    except Exception:
        return None
    return changed


def _item(owner: Any, step: str | int) -> Any:
    return owner[step] if hasattr(owner, "__getitem__") else getattr(owner, str(step))


def config_of(model: nn.Module) -> Any:
    """Return the configuration of a transformer."""
    return model.config


def built_without_data(model: nn.Module, config: Any) -> nn.Module | None:
    """Build the class of ``model`` from a configuration, without data; None where it refuses."""
    try:
        with torch.device("meta"), PROCESS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built: nn.Module = type(model)(config)
            return built
    # What a class raises for sizes that do not go together is its own choice.
    except Exception:
        return None


def _operations(module: nn.Module, inputs: Arguments) -> list[Any]:
    """List what a forward runs: each operation with its arguments, of tensors only the shapes."""

    def shown(value: Any) -> Any:
        if isinstance(value, Ref):
            return value.shape
        return [shown(item) for item in value] if isinstance(value, (list, tuple)) else value

    return [
        (call.op, call.module, [(name, shown(value)) for name, value in call.arguments.items()])
        for call in record(Network.of(module), *inputs).calls
    ]
