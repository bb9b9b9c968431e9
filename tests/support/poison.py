"""Memory that shows when a kernel has left it unwritten."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that slimfast.kernels allocates holds NaN (integers: 77) until a kernel writes it."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = empty(*args, **kwargs)
        if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("slimfast.kernels"):
            out.fill_(float("nan") if out.is_floating_point() else 77)
        return out

    monkeypatch.setattr(torch, "empty", poisoned)
