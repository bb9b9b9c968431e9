"""Tensors without data that a recorded forward puts into memories of the program, found and taken out again.

A function with :func:`functools.lru_cache`, a table in a module or a class keeps what it was asked for last.
In a recording that is a tensor without data, which the program's own network would be given afterwards, and
with which the next recording would be a shorter one than the first.
"""

from __future__ import annotations

import functools
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
# Tuples in tuples: from a tensor up to what remembers it.
_DEEPEST = 4


class _Made(threading.local):
    """The tensors that the recordings under way in this thread have made; None where there is none."""

    tensors: list[weakref.ref[Tensor]] | None = None


_made = _Made()


def note_made(tensors: Iterable[Tensor]) -> None:
    """Remember the tensors that a recording has made, to look for them when it is over."""
    if _made.tensors is not None:
        _made.tensors += map(weakref.ref, tensors)


def leaves_nothing(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that records: what its recordings made is gone when it returns or raises."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if _made.tensors is not None:
            return function(*args, **kwargs)
        _made.tensors = []
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            clear_frames(error)
            raise
        finally:
            made, _made.tensors = _made.tensors, None
            _take_out(made)

    return run


def clear_frames(error: BaseException | None) -> None:
    """Let go of the tensors in the frames that an error and its causes passed through, to be kept itself."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _take_out(made: list[weakref.ref[Tensor]]) -> None:
    if not _alive(made):
        return
    # Most often a circle that nobody holds.
    gc.collect()
    if not (alive := _alive(made)):
        return
    _take_out_of_holders(alive, 0)
    del alive
    if left := _alive(made):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in left[:3])
        _log.warning("a recording left %d tensors without data behind, of shapes %s", len(left), shapes)


def _alive(made: list[weakref.ref[Tensor]]) -> list[Tensor]:
    return [tensor for reference in made if (tensor := reference()) is not None]


def _take_out_of_holders(held: list[Any], depth: int) -> None:
    """Make everything that holds one of these objects forget it, through the tuples that they are in."""
    numbers = {id(thing) for thing in held}
    holders = [h for h in gc.get_referrers(*held) if h is not held and not isinstance(h, (FrameType, list))]
    for holder in holders:
        if isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, dict):
            _take_out_of_dict(holder, [key for key, value in holder.items() if id(value) in numbers])
        elif not isinstance(holder, (tuple, frozenset)) and hasattr(holder, "__dict__"):
            for name in [name for name, value in vars(holder).items() if id(value) in numbers]:
                setattr(holder, name, None)
    containers = [holder for holder in holders if isinstance(holder, (tuple, frozenset))]
    if containers and depth < _DEEPEST:
        _take_out_of_holders(containers, depth + 1)


def _take_out_of_dict(holder: dict[Any, Any], keys: list[Any]) -> None:
    """Forget these items as the owner of the dictionary would: a cache is cleared, which is all that it
    offers, an attribute or a variable of a module becomes None, and an item of a table is removed.
    """
    for owner in gc.get_referrers(holder):
        if isinstance(owner, functools._lru_cache_wrapper):
            owner.cache_clear()
            return
        attributes = getattr(owner, "__dict__", {})
        if all(key in attributes and attributes[key] is holder[key] for key in keys):
            # Not in the dictionary itself: the interpreter remembers what it found in that of a class.
            for key in keys:
                setattr(owner, key, None)
            return
    for key in keys:
        del holder[key]
