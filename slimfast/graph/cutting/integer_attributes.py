"""The integers inside what modules hold, however nested, that may be the width of something."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from slimfast.graph.cutting.patches import standard_attributes
from slimfast.graph.recording.network import Network

# An attribute: (module path, place in what the module holds).
Place: TypeAlias = tuple[str, str]

# How deep lists, tables and objects are looked into.
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class HeldInteger:
    """An integer that a module holds: ``place`` as in :class:`slimfast.graph.cutting.patches.Patch`.

    ``words``: those of its name, num and chs of ``feature_info.0.num_chs``; in a table of nothing but
    integers (an adapter's rank by the adapter's name) those of the table's name too. ``elsewhere``: further
    places of it, where modules share what holds it. ``names_module``: what the table around it has as its
    "module". ``of_the_hub``: it belongs to a configuration of Hugging Face's, which
    describes the wide network until :func:`slimfast.save_pretrained` writes the thin one's.
    """

    module: str
    place: str
    value: int
    words: frozenset[str]
    elsewhere: tuple[Place, ...] = ()
    names_module: Any = None
    of_the_hub: bool = False


def held_integers(network: Network) -> Iterator[HeldInteger]:
    """Find the integers of every module, but for what PyTorch's own layers hold, which follows their tensors.

    What several modules share is looked into where it is held first.
    """
    holders: dict[int, list[Place]] = {}
    held: list[tuple[str, dict[str, Any]]] = []
    for path, module in network.modules.items():
        own = {} if _is_standard(module) else _own(module)
        held.append((path, own))
        for name, value in own.items():
            if not isinstance(value, int):
                holders.setdefault(id(value), []).append((path, name))
    for path, own in held:
        for name, value in own.items():
            places = holders.get(id(value), [(path, name)])
            if places[0] != (path, name):
                continue
            of_the_hub = name == "config" and hasattr(value, "to_dict")
            for rest, number, around in _integers(value, {id(value)}, 0):
                table = around if isinstance(around, Mapping) else {}
                yield HeldInteger(
                    path,
                    name + rest,
                    number,
                    _words(name + rest, within_table=_all_integers(around)),
                    tuple((other, held_as + rest) for other, held_as in places[1:]),
                    table.get("module"),
                    of_the_hub,
                )


def _all_integers(around: Any) -> bool:
    """Say whether something is a table of nothing but integers."""
    return isinstance(around, Mapping) and all(type(item) is int for item in around.values())


def _words(place: str, *, within_table: bool) -> frozenset[str]:
    """Split the last name in a place into words, and the one before where a table of integers is meant."""
    names = [part for part in place.split(".") if not part.isdecimal()]
    text = " ".join(names[-2:] if within_table else names[-1:])
    return frozenset(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", text).lower()))


def _own(module: nn.Module) -> dict[str, Any]:
    """List what a module holds besides tensors and modules, and what PyTorch keeps in it."""
    return {
        name: value
        for name, value in vars(module).items()
        if not isinstance(value, (Tensor, nn.Module, bool)) and not name.startswith("_")
    }


def _is_standard(module: nn.Module) -> bool:
    """Say whether a module is a layer of PyTorch's whose attributes follow its tensors or what it norms."""
    tensors = {**module._parameters, **module._buffers}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return True
    return bool(standard_attributes(module, shapes))


def _integers(held: Any, seen: set[int], depth: int) -> Iterator[tuple[str, int, Any]]:
    """Find (place inside, value, what is right around it) of the integers in what is held."""
    if type(held) is int:
        yield "", held, None
        return
    if depth > _DEEPEST:
        return
    for part, value in _items(held):
        if type(value) is int:
            yield f".{part}", value, held
        elif id(value) not in seen:
            seen.add(id(value))
            for rest, number, around in _integers(value, seen, depth + 1):
                yield f".{part}{rest}", number, around


def _items(held: Any) -> list[tuple[str, Any]]:
    """List the items of a sequence or a table, or an object's attributes, by names that can be in a place."""
    if isinstance(held, (tuple, list)) and not hasattr(held, "_fields"):
        return [(str(i), item) for i, item in enumerate(held)]
    if isinstance(held, (type, Tensor, nn.Module)) or callable(held):
        return []
    table = held if isinstance(held, Mapping) else getattr(held, "__dict__", {})
    if hasattr(held, "_fields"):
        table = held._asdict()
    return [(key, item) for key, item in table.items() if isinstance(key, str) and key.isidentifier()]
