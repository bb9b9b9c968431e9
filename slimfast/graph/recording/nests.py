"""Nests of values that a forward takes or returns: containers, and objects with tensors in them."""

from __future__ import annotations

import copy
import functools
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError, UnsupportedGraph, one_line

Kind = TypeVar("Kind")

SCALARS = (bool, int, float, str, type(None))
# What stands beside the tensors of an output and holds none.
_WITHOUT_TENSORS = (
    *(*SCALARS, complex, bytes, type, ModuleType, Enum, slice, range, PurePath, np.ndarray, np.generic),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator, nn.Module),
    *(FunctionType, BuiltinFunctionType, MethodType, functools.partial, re.Pattern, weakref.ref),
)


def map_leaves(nest: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to everything in a nest of lists, tuples and mappings, which stays the same."""
    if isinstance(nest, Mapping):
        return {key: map_leaves(value, function) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_leaves(value, function) for value in nest))
    if isinstance(nest, (list, tuple)):
        return type(nest)(map_leaves(value, function) for value in nest)
    return function(nest)


def map_tensors(nest: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply ``function`` to every tensor of a nest, those that objects in it hold included; such an object is
    copied."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        held = [] if isinstance(leaf, _WITHOUT_TENSORS) else list(tensors_in(leaf))
        return copied_with(leaf, {id(tensor): function(tensor) for tensor in held}) if held else leaf

    return map_leaves(nest, convert)


def cloned(nest: Any) -> Any:
    """Copy every tensor of a nest of arguments, for a forward that may write into what it is given."""
    return map_tensors(nest, lambda tensor: tensor.detach().clone())


def copied_with(holder: Any, replacements: Mapping[int, Any]) -> Any:
    """Copy an object with others in the place of those in it that have these identities.

    Raises :class:`SlimfastError` for an object that cannot be copied.
    """
    try:
        return copy.deepcopy(holder, dict(replacements))
    except Exception as error:
        kind = type(holder).__name__
        raise SlimfastError(f"example: the {kind} cannot be copied: {one_line(error)}") from error


def holds_tensors(value: Any) -> bool:
    """Say whether an object has tensors in it."""
    return not isinstance(value, _WITHOUT_TENSORS) and next(tensors_in(value), None) is not None


def objects_in(nest: Any, kind: type[Kind]) -> Iterator[Kind]:
    """Yield the objects of a class in a nest, as :func:`tensors_in` finds tensors."""
    for _, found in _objects_in(nest, kind, False, set(), ""):
        yield found


def tensors_in(nest: Any, *, strict: bool = False) -> Iterator[Tensor]:
    """Yield the tensors of whatever a forward takes or returns, in order, each object once.

    Lists, tuples, mappings and sets are looked into, and so is any other object: its attributes, in
    ``__dict__`` and slots (a detector's result class, a distribution of :mod:`torch.distributions`, a
    dataclass). Not so modules, and caches: a class named ``...Cache`` holds what the next call reads, as a
    decoder's keys and values, which shrink with its heads and are no output to keep.

    Raises:
        UnsupportedGraph: ``strict``, and an object that cannot be looked into, by its type.
    """
    for _, tensor in named_tensors_in(nest, strict=strict):
        yield tensor


def named_tensors_in(nest: Any, *, strict: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`tensors_in` does, each with its place: ``boxes.0`` is the first of ``boxes``.

    A tensor alone has the place "".
    """
    yield from _objects_in(nest, Tensor, strict, set(), "")


def _objects_in(
    nest: Any, kind: type[Kind], strict: bool, seen: set[int], place: str
) -> Iterator[tuple[str, Kind]]:
    if isinstance(nest, kind):
        yield place, nest
        return
    if isinstance(nest, _WITHOUT_TENSORS) or id(nest) in seen:
        return
    seen.add(id(nest))
    parts = _parts_of(nest)
    if parts is None and strict:
        name = f"{type(nest).__module__}.{type(nest).__qualname__}"
        raise UnsupportedGraph(
            f"the forward returns a {name}, which cannot be looked into for tensors; return tensors, or an "
            f"object that holds them as attributes"
        )
    for name, value in parts or ():
        yield from _objects_in(value, kind, strict, seen, f"{place}.{name}" if place else str(name))


def _parts_of(holder: Any) -> Iterable[tuple[Any, Any]] | None:
    """List what an object holds by name: its items where it is a container, and its attributes; None where it
    shows neither.
    """
    bases = type(holder).__mro__
    if any(base.__name__.endswith("Cache") for base in bases):
        return ()
    slots = [name for base in bases for name in _slots_of(base)]
    attributes = [*vars(holder).items()] if hasattr(holder, "__dict__") else []
    attributes += [(name, getattr(holder, name)) for name in slots if hasattr(holder, name)]
    if isinstance(holder, Mapping):
        # A dictionary that shows its items as attributes too, as Hugging Face's outputs do, has them once.
        items = list(holder.values())
        beside = [(name, value) for name, value in attributes if not any(value is item for item in items)]
        return [*holder.items(), *beside]
    if isinstance(holder, (list, tuple, set, frozenset, deque)):
        return [*enumerate(holder), *attributes]
    return attributes if slots or hasattr(holder, "__dict__") else None


def _slots_of(kind: type) -> list[str]:
    """List the names under which a class keeps what its ``__slots__`` name."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [*slots]
    private = f"_{kind.__name__.lstrip('_')}"
    return [
        private + name if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]
