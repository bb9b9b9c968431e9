"""The compiled modules, loaded once; where one does not load, the reason is kept instead of raised.

``import slimfast`` therefore works everywhere, and the saved reason is what ``why_not`` and ``doctor`` print.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from types import ModuleType

# OpenMP: torch brings its own libgomp under the plain soname, and importing it first makes ours the same one.
import torch  # noqa: F401


@dataclass(frozen=True, slots=True)
class Native:
    """A compiled module, or why there is none."""

    module: ModuleType | None
    reason: str | None


def _load(name: str) -> Native:
    try:
        return Native(importlib.import_module(f"slimfast.{name}"), None)
    except ImportError as error:
        return Native(None, f"slimfast.{name} does not load: {error}")


@functools.cache
def cpu() -> Native:
    """Load the C++ CPU kernels."""
    return _load("_cpu")


@functools.cache
def cuda() -> Native:
    """Load the CUDA kernels; with ``SLIMFAST_CUDA_EMULATE=1`` the same sources run on the CPU, for tests."""
    return _load("_cuda_emulated" if cuda_is_emulated() else "_cuda")


def cuda_is_emulated() -> bool:
    """Whether ``SLIMFAST_CUDA_EMULATE=1`` asks for the CUDA kernels' CPU build (read once, at first use)."""
    return os.environ.get("SLIMFAST_CUDA_EMULATE", "") == "1"
