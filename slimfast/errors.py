"""The exceptions of slimfast.

    SlimfastError                     what the user can act on; the message is one line
    ├── BackendUnavailable            a backend that was asked for by name cannot run
    └── UnsupportedGraph              a model whose forward cannot be recorded

Wrong arguments are plain ``ValueError`` and ``TypeError``.
"""

from __future__ import annotations


class SlimfastError(Exception):
    """Something outside the program's control is wrong: a file, a model, a budget, the machine."""


class BackendUnavailable(SlimfastError):
    """A kernel backend that was named cannot run; the message lists every reason."""


class UnsupportedGraph(SlimfastError):
    """A model's forward cannot be recorded; the message names the operation or the module."""
