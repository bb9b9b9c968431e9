"""Methods that run layers and that no forward calls: other entries into a network, unseen by any trace."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from types import CodeType

from torch import nn

from slimfast.graph.recording.network import Network

# Of the methods so many are named.
_NAMED = 6
# Since Python 3.12 an attribute that is called at once is an odd argument of LOAD_ATTR.
_ATTRIBUTE_CALLED = sys.version_info >= (3, 12)


def unreached_methods(network: Network) -> list[str]:
    """Name the methods of a network's classes that call one of their layers, and that no forward leads to.

    Found by the names in the code of the classes, for a method that nothing runs cannot be recorded. What
    runs layers of a list is not seen.

    Returns:
        ``Class.method`` of each, in the order of the modules.
    """
    codes: dict[type, dict[str, CodeType]] = {}
    layers: dict[type, set[str]] = {}
    for module in network.modules.values():
        kind = type(module)
        codes.setdefault(kind, dict(_methods(kind)))
        layers.setdefault(kind, set()).update(name for name, child in module._modules.items() if child)
    reached = _reached(codes)
    return list(
        dict.fromkeys(
            f"{kind.__name__}.{name}"
            for kind, methods in codes.items()
            for name, code in methods.items()
            if name not in reached and layers[kind].intersection(_called(code))
        )
    )


def note_of_unreached(network: Network) -> list[str]:
    """Say in one line which methods no trace has seen; nothing where there are none."""
    found = unreached_methods(network)
    if not found:
        return []
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [
        f"no forward leads to {', '.join(found[:_NAMED])}{more}, which run layers too: what they read from "
        f"attributes follows a cut, widths that their code writes out do not"
    ]


def _methods(kind: type) -> Iterator[tuple[str, CodeType]]:
    """Yield the methods of a class and of the bases that are nobody's but the user's, its own last."""
    for base in reversed(kind.__mro__):
        if base is object or base is nn.Module or base.__module__.split(".")[0] == "torch":
            continue
        for name, function in vars(base).items():
            function = inspect.unwrap(function) if callable(function) else function
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                yield name, code


def _reached(codes: dict[type, dict[str, CodeType]]) -> set[str]:
    """List the names that a forward, or what it leads to, mentions."""
    named: dict[str, set[str]] = {}
    for methods in codes.values():
        for name, code in methods.items():
            named.setdefault(name, set()).update(_names(code))
    reached, waiting = set(), ["forward", "__call__", "__init__"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += named.get(name, ())
    return reached


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in a piece of code, and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _called(code: CodeType) -> Iterator[str]:
    """Yield the attributes that a piece of code calls as they are: ``self.layer(x)``."""
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_METHOD" or (
            _ATTRIBUTE_CALLED and step.opname == "LOAD_ATTR" and step.arg is not None and step.arg & 1
        ):
            yield code.co_names[
                step.arg >> 1 if _ATTRIBUTE_CALLED and step.arg is not None else step.arg or 0
            ]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _called(constant)
