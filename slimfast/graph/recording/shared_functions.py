"""Refuse functions that a copy of a network shares with it and that run the original's layers in the copy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.network import Network


def accept(tensor: Tensor) -> None:
    """Refuse nothing."""


def refuse_tensors_of(network: Network) -> Callable[[Tensor], None]:
    """Make what refuses a tensor of the network in the recording of a copy of it.

    A function is not copied: what it encloses (a wrapped ``forward``, a hook) is the original's. A thin copy
    would run the original's layer at its old width, follow its training, and never be trained itself.
    """
    names = {id(tensor): name for name, tensor in network.tensors.items()}

    def refuse(tensor: Tensor) -> None:
        name = names.get(id(tensor))
        if name is not None:
            raise UnsupportedGraph(
                f"a copy of the network still uses the original's {name}, through "
                f"{_holder_of(network, tensor)}; what a function encloses is not copied: give the network as "
                f"it was before"
            )

    return refuse


def _holder_of(network: Network, tensor: Tensor) -> str:
    """Name the attribute that holds a function which leads to a tensor of the network."""
    for path, module in network.modules.items():
        for name, function in _functions_of(module):
            if any(_leads_to(held, tensor) for held in _enclosed(function, set())):
                return f"{name} of {path or 'the model itself'}"
    return "a function outside of it, or a class's own way of being copied"


def _functions_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that are functions, and its hooks."""
    for name, value in vars(module).items():
        if isinstance(value, (FunctionType, MethodType, functools.partial)):
            yield f"the attribute {name}", value
        elif name.endswith("_hooks") and isinstance(value, Mapping):
            for hook in value.values():
                yield "a hook", hook


def _enclosed(function: Any, seen: set[int]) -> Iterator[Any]:
    """Yield what a function encloses, through the functions that it encloses in turn."""
    if id(function) in seen:
        return
    seen.add(id(function))
    for value in _held_by(function):
        yield value
        yield from _enclosed(value, seen)


def _held_by(function: Any) -> list[Any]:
    """List what a function itself holds, variables of its module that it names included."""
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, FunctionType):
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        known = function.__globals__
        named = [known[name] for name in function.__code__.co_names if name in known]
        return [*(function.__defaults__ or ()), *cells, *named]
    return []


def _is_filled(cell: Any) -> bool:
    """Say whether the variable of a cell was assigned yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _leads_to(held: Any, tensor: Tensor) -> bool:
    """Say whether what a function holds is the tensor, or a module that has it."""
    if isinstance(held, nn.Module):
        return any(own is tensor for own in (*held.parameters(), *held.buffers()))
    return held is tensor
