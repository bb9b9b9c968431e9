"""Functions that a copy of a network shares with it, for functions are not copied.

Those that run the original's layers in the copy are refused, and so are hooks that write what it reads.
What other hooks write into is left as it was.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.own_modes import without_own_modes
from slimfast.graph.recording.recursion import nested_calls_allowed


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


class _State(threading.local):
    """The containers that hooks have written into while copies ran; None where nobody asks."""

    written: list[Any] | None = None


_state = _State()


@contextmanager
def refusing_hooks_that_write(network: Network) -> Iterator[None]:
    """Refuse a hook that writes, in the copies that run meanwhile, into a container which a module holds too.

    The hook of a copy writes into the original's, and the copy reads its own.

    Raises:
        UnsupportedGraph: Naming the module with the hook and the attribute.
    """
    before, _state.written = _state.written, []
    try:
        yield
    except UnsupportedGraph as error:
        if (message := _writing_hook(network, _state.written)) is not None:
            raise UnsupportedGraph(message) from error
        raise
    else:
        if (message := _writing_hook(network, _state.written)) is not None:
            raise UnsupportedGraph(message)
    finally:
        _state.written = before


def _writing_hook(network: Network, written: list[Any]) -> str | None:
    """Say which hook has written into what a module holds; None where none has."""
    if not written:
        return None
    numbers = {id(container) for container in written}
    held = {
        id(value): f"{name} of {path or 'the model itself'}"
        for path, module in network.modules.items()
        for name, value in vars(module).items()
        if id(value) in numbers
    }
    for path, module in network.modules.items():
        for container in _containers_of_hooks(module):
            if id(container) in held:
                where = path or "the model itself"
                return (
                    f"a hook of {where} writes into the attribute {held[id(container)]}, of which a copy of "
                    f"the network has its own, but what a function encloses is not copied; let the hook be a "
                    f"method that reaches it through self"
                )
    return None


@contextmanager
def a_copy_runs(network: Network) -> Iterator[None]:
    """Let a copy of the network run, however deep it is nested, and put the containers that its hooks enclose
    back as they were.
    """
    containers = [c for module in network.modules.values() for c in _containers_of_hooks(module)]
    before = [copy.copy(container) for container in containers]
    try:
        with nested_calls_allowed(network), without_own_modes():
            yield
    finally:
        for container, content in zip(containers, before, strict=True):
            if not _holds_the_same(container, content):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
                if _state.written is not None:
                    _state.written.append(container)


def _holds_the_same(a: Any, b: Any) -> bool:
    """Say whether two containers hold the same objects, in the same places."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(value is b[key] for key, value in a.items())
    return len(a) == len(b) and {id(item) for item in a} == {id(item) for item in b}


def _containers_of_hooks(module: nn.Module) -> Iterator[Any]:
    """Yield the dictionaries, lists and sets that the hooks of a module enclose, each once."""
    seen: set[int] = set()
    for name, hooks in vars(module).items():
        if name.endswith("_hooks") and isinstance(hooks, Mapping):
            for hook in list(hooks.values()):
                for held in _enclosed(hook, seen):
                    if type(held) in (dict, list, set):
                        yield held


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
