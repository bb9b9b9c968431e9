"""Copies of a module in which some tensors are replaced, made without copying the ones they replace."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.recursion import nested_calls_allowed

# Values that a copy shares, as copy.deepcopy does.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})
# Containers that every module has to itself.
_OWN = frozenset(name for name, value in vars(nn.Module()).items() if type(value) in (dict, OrderedDict, set))
# Methods by which a class says how it is copied.
_COPYING = {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__",
            "__getnewargs__", "__getnewargs_ex__"}  # fmt: skip

# The pauses under way, and whether the collector was on before the first of them.
_lock = threading.Lock()
_pauses = 0
_was_enabled = False


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name every parameter and buffer of a module once, by the first of its names; parameters first."""
    return dict(Network.of(model).tensors)


def aliases(model: nn.Module) -> dict[str, str]:
    """Find each further name of a shared (tied) parameter or buffer, and the tensor's first name."""
    return dict(Network.of(model).tied)


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
    """Copy a model that nobody has gone through yet, as :func:`copy_network` does."""
    return copy_network(Network.of(model), tensors, share=share)


def copy_network(network: Network, tensors: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
    """Copy a model with ``tensors`` as its parameters and buffers of these names, wherever they occur.

    The replaced tensors are not copied, and a tied one is replaced under all of its names. A replacement
    takes the ``requires_grad`` and the class of the parameter it stands for, and may share memory with
    anything; what is not named is copied as ``copy.deepcopy`` does it, or with ``share`` is the copy's too.
    Raises :class:`SlimfastError` for a module that cannot be copied.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in network.tensors.values()} if share else {}
    for name, tensor in tensors.items():
        old, value = network.tensors[network.tied.get(name, name)], tensor.detach()
        if value.is_inference() and not torch.is_inference_mode_enabled():
            # What was made in inference mode cannot be trained.
            value = value.clone()
        if isinstance(old, nn.Parameter):
            # Tensors of a class of their own are parameters without being of a class of parameters.
            kind = type(old) if issubclass(type(old), nn.Parameter) else nn.Parameter
            memo[id(old)] = kind(value, requires_grad=old.requires_grad)
        else:
            memo[id(old)] = value.requires_grad_(old.requires_grad)
    return deep_copy(network, memo)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no cyclic garbage meanwhile, in any thread, until the last of several pauses ends.

    A recording makes some ten thousand objects and frees hardly any. Python then goes through all objects of
    the process, several hundred thousand with PyTorch loaded, and finds no garbage: a quarter of the time of
    tracing a network.
    """
    global _pauses, _was_enabled
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()


@collector_paused()
def deep_copy(network: Network, memo: dict[int, Any]) -> nn.Module:
    """Copy a model as ``copy.deepcopy(network.model, memo)`` does, several times faster.

    Raises :class:`SlimfastError` where it fails.
    """
    with nested_calls_allowed(network):
        try:
            memo.update(_computed_in_lists(network, memo))
            shells = []
            for module in network.modules.values():
                if id(module) not in memo and _is_plain(type(module).__mro__):
                    shells.append((module, object.__new__(type(module))))
                    memo[id(module)] = shells[-1][1]
            for module in network.modules.values():
                _copy_handles(module, memo)
            for module, shell in shells:
                state = vars(shell)
                for name, value in vars(module).items():
                    if type(value) in _ATOMS:
                        state[name] = value
                    elif name in _OWN and not value:
                        state[name] = type(value)()
                    else:
                        state[name] = _copied(value, memo)
                # as nn.Module.__getstate__ has it
                state.pop("_compiled_call_impl", None)
            copied: nn.Module = copy.deepcopy(network.model, memo)
            for module in network.modules.values():
                _copy_slots(module, memo)
        except Exception as error:
            raise SlimfastError(
                f"{type(network.model).__name__} cannot be copied: {one_line(error)}"
            ) from error
    return copied


def _computed_in_lists(network: Network, memo: Mapping[int, Any]) -> dict[int, Tensor]:
    """Copy the tensors that modules keep in lists and that were computed, which ``copy.deepcopy`` refuses.

    A recurrent layer lists its weights, those that a weight norm or a mask has made among them.
    """
    return {
        id(item): item.detach().clone()
        for module in network.modules.values()
        for value in vars(module).values()
        if type(value) is list
        for item in value
        if isinstance(item, Tensor) and not item.is_leaf and id(item) not in memo
    }


@cache
def _is_plain(bases: tuple[type, ...]) -> bool:
    """Say whether a module of a class with these bases is copied by copying its attributes."""
    for base in bases[: bases.index(nn.Module)]:
        # PyTorch's own layers fill in, when they are restored, what files of earlier versions lack.
        said = vars(base).keys() - ({"__setstate__"} if base.__module__.startswith("torch.nn.") else set())
        if said & _COPYING or vars(base).get("__slots__"):
            return False
    return True


def _copy_slots(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy what a module keeps in ``__slots__``, which ``nn.Module.__getstate__`` leaves out."""
    made = memo.get(id(module))
    for base in type(module).__mro__ if made is not None else ():
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            slot = vars(base).get(name)
            # Python gives an empty slot as an AttributeError.
            if slot is not None and hasattr(module, name) and not hasattr(made, name):
                slot.__set__(made, copy.deepcopy(slot.__get__(module), memo))


def _copy_handles(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy the handles of hooks that a module keeps, which remove the copy's hooks then.

    What ``copy.deepcopy`` makes of a handle it cannot copy again.
    """
    for name, value in vars(module).items():
        if name in _OWN:
            continue
        for handle in _handles_in(value):
            copied = memo[id(handle)] = object.__new__(RemovableHandle)
            copied.id = handle.id
            hooks, *more = (
                None if (held := reference()) is None else weakref.ref(_copied(held, memo))
                for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref)
            )
            copied.hooks_dict_ref = hooks or weakref.ref(OrderedDict())
            copied.extra_dict_ref = tuple(reference for reference in more if reference is not None)


def _handles_in(value: Any) -> Iterator[RemovableHandle]:
    if isinstance(value, RemovableHandle):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _handles_in(item)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        for key, item in value.items():
            made[key if type(key) is str else copy.deepcopy(key, memo)] = _copied(item, memo)
        return made
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    if isinstance(value, Tensor) and not value.is_leaf:
        # what a hook makes of parameters before each forward, as weight norms of old do: deepcopy refuses it
        memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    return copy.deepcopy(value, memo)
