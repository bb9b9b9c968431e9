"""The exceptions of slimfast.

    SlimfastError                     what the user can act on; the message is one line
    ├── BackendUnavailable            a backend that was asked for by name cannot run
    ├── Cancelled                     a progress callback raised it to stop the work
    └── UnsupportedGraph              a model whose forward cannot be recorded

    ArgumentError(ValueError)         an argument that may not be passed
    ├── NonFinite                     a tensor with infinities or NaN in it
    ArgumentTypeError(TypeError)      an argument of another kind

Wrong arguments are ``ValueError`` and ``TypeError`` to a caller. Inside slimfast only these kinds of them are
caught and explained: any other one is a fault of the program, whose traceback must be seen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimfastError(Exception):
    """Something outside the program's control is wrong: a file, a model, a budget, the machine.

    The message is one printable line, whatever names a stranger's file put into it: other characters stand
    there as their escapes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class BackendUnavailable(SlimfastError):
    """A kernel backend that was named cannot run; the message lists every reason."""


class Cancelled(SlimfastError):
    """Raised by a ``progress`` callback to stop the work it is told of; it then reaches the caller.

    Nothing that was being written is half there, and the models are as usable as before the call.
    """

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)


class UnsupportedGraph(SlimfastError):
    """A model's forward cannot be recorded; the message names the operation or the module."""


def one_line(error: BaseException) -> str:
    """Say in one line what an exception says: the first line of its message, or its class where it has none.

    A first line that ends in a colon ("Error(s) in loading state_dict for Net:") brings the next one along.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def shown(value: object) -> str:
    """Write a value as it stands in a message: short, whatever a stranger's file holds."""
    # What would be cut off anyway is not put into words.
    text = repr(value[:61] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Make the hint that ends a message about an unknown name or glob: the nearest known one, or nothing."""
    names = list(known)
    if not isinstance(name, str) or name in names:
        return ""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {shown(nearest[0])}?)" if nearest else ""


class ArgumentError(ValueError):
    """An argument has a value that may not be passed; the message says what was expected."""


class NonFinite(ArgumentError):
    """A tensor holds infinities or NaN; the message names it and the place."""


class ArgumentTypeError(TypeError):
    """An argument is of another type than can be worked with; the message says what was expected."""


def printable(text: str) -> str:
    """Replace line breaks, the codes that steer a terminal and the like in ``text`` by their escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
