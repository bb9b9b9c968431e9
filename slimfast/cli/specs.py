"""Names with arguments, as the command line takes them for models and data: ``NAME?key=value&key=value``."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slimfast.errors import SlimfastError, did_you_mean, one_line


@dataclass(frozen=True, slots=True)
class Spec:
    """A name and the keyword arguments that stood behind it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def parse_spec(text: str, what: str) -> Spec:
    """Parse ``NAME?key=value&key=value``; values are JSON, or words where they are not."""
    name, question, rest = text.partition("?")
    if not question:
        return Spec(name)
    arguments: dict[str, Any] = {}
    # An ampersand inside a value is followed by no key.
    for part in re.split(r"&(?=[A-Za-z_]\w*=)", rest):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            raise SlimfastError(f"{what} {text!r}: expected NAME?key=value&key=value, got {part!r}")
        arguments[key] = _value(value)
    return Spec(name, arguments)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def import_object(name: str, what: str) -> Any:
    """Import ``package.module:attribute``; the current folder is searched too, after all others."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise SlimfastError(f"{what} {name!r}: expected package.module:function")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found = call_foreign(f"{what} {name}", importlib.import_module, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found))
            raise SlimfastError(f"{what} {name}: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def call_foreign(what: str, function: Callable[..., Any], *args: Any, hint: str = "", **kwargs: Any) -> Any:
    """Run code that is not ours; whatever it raises becomes one line, with the ``hint`` at its end."""
    try:
        return function(*args, **kwargs)
    except SlimfastError:
        raise
    except Exception as error:
        raise SlimfastError(f"{what}: {type(error).__name__}: {one_line(error)}{hint}") from error
