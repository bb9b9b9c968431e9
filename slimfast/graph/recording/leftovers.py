"""Tensors without data that a recorded forward puts into memories of the program, found and taken out again.

A function with :func:`functools.lru_cache`, a table in a module or a class keeps what it was asked for last.
In a recording that is a tensor without data, which the program's own network would be given afterwards, and
with which the next recording would be a shorter one than the first.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
# The memoised functions that have kept a tensor of a recording.
_caches: weakref.WeakSet[functools._lru_cache_wrapper[Any]] = weakref.WeakSet()
# Tuples in tuples: from a tensor up to what remembers it.
_DEEPEST = 4


@dataclass(slots=True)
class _Made:
    """What recordings have made, and the modules of the copies that they ran, which may hold some of it."""

    tensors: list[weakref.ref[Tensor]] = field(default_factory=list)
    modules: list[weakref.ref[nn.Module]] = field(default_factory=list)


class _State(threading.local):
    """What the recordings under way in this thread have made; None where there is none."""

    made: _Made | None = None


_state = _State()


def note_made(tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
    """Remember the tensors that a recording has made, to look for them when it is over.

    ``modules``: those of the copy that ran, which is nobody else's. What it holds goes with it.
    """
    if _state.made is not None:
        _state.made.tensors += map(weakref.ref, tensors)
        _state.made.modules += map(weakref.ref, modules)


def leaves_nothing(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that records: what its recordings made is gone when it returns or raises."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if _state.made is not None:
            return function(*args, **kwargs)
        made = _state.made = _Made()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            clear_frames(error)
            raise
        finally:
            _state.made = None
            _take_out(made)

    return run


def clear_frames(error: BaseException | None) -> None:
    """Let go of the tensors in the frames that an error and its causes passed through, to be kept itself."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _take_out(made: _Made) -> None:
    if not _held_elsewhere(made):
        return
    # To go through all objects of the process takes as long as a recording: first what kept something before.
    for wrapper in list(_caches):
        wrapper.cache_clear()
    if not _held_elsewhere(made):
        return
    # Most often a circle that nobody holds.
    gc.collect()
    if not (held := _held_elsewhere(made)):
        return
    _take_out_of_holders(held, 0)
    del held
    if left := _held_elsewhere(made):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in left[:3])
        _log.warning("a recording left %d tensors without data behind, of shapes %s", len(left), shapes)


def _held_elsewhere(made: _Made) -> list[Tensor]:
    """List the tensors that are alive though no module of the copies holds them, or somebody else as well."""
    alive = [tensor for tensor in (reference() for reference in made.tensors) if tensor is not None]
    if not alive:
        return alive
    holdings: Counter[int] = Counter()
    for reference in made.modules:
        module = reference()
        if module is not None:
            # its parameters and buffers are tables among them
            for value in vars(module).values():
                holdings.update(_tensors_held(value))
    # One reference is that of the list here, one that of the loop, one that of the question.
    return [tensor for tensor in alive if sys.getrefcount(tensor) - 3 > holdings[id(tensor)]]


def _tensors_held(value: Any) -> Iterator[int]:
    """Yield the identities of tensors that an attribute is, or that stand in it as a list or a table."""
    if isinstance(value, Tensor):
        yield id(value)
    elif isinstance(value, dict):
        yield from (id(item) for item in value.values() if isinstance(item, Tensor))
    elif isinstance(value, (list, tuple)):
        yield from (id(item) for item in value if isinstance(item, Tensor))


def _take_out_of_holders(held: list[Any], depth: int) -> None:
    """Make everything that holds one of these objects forget it, through the tuples that they are in."""
    numbers = {id(thing) for thing in held}
    holders = [h for h in gc.get_referrers(*held) if h is not held and not isinstance(h, FrameType)]
    for holder in holders:
        if isinstance(holder, functools._lru_cache_wrapper):
            _clear(holder)
        elif isinstance(holder, dict):
            _take_out_of_dict(holder, [key for key, value in holder.items() if id(value) in numbers])
        elif isinstance(holder, list):
            holder[:] = [item for item in holder if id(item) not in numbers]
        elif not isinstance(holder, (tuple, frozenset)) and hasattr(holder, "__dict__"):
            for name in [name for name, value in vars(holder).items() if id(value) in numbers]:
                setattr(holder, name, None)
    containers = [holder for holder in holders if isinstance(holder, (tuple, frozenset))]
    if containers and depth < _DEEPEST:
        _take_out_of_holders(containers, depth + 1)


def _clear(cache: functools._lru_cache_wrapper[Any]) -> None:
    """Make a memoised function forget, and remember that it remembers."""
    cache.cache_clear()
    _caches.add(cache)


def _take_out_of_dict(holder: dict[Any, Any], keys: list[Any]) -> None:
    """Forget these items as the owner of the dictionary would: a cache is cleared, which is all that it
    offers, an attribute or a variable of a module becomes None, and an item of a table is removed.
    """
    for owner in gc.get_referrers(holder):
        if isinstance(owner, functools._lru_cache_wrapper):
            _clear(owner)
            return
        attributes = getattr(owner, "__dict__", {})
        if all(key in attributes and attributes[key] is holder[key] for key in keys):
            # Not in the dictionary itself: the interpreter remembers what it found in that of a class.
            for key in keys:
                setattr(owner, key, None)
            return
    for key in keys:
        del holder[key]
