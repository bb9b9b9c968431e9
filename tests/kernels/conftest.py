"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import jaxtyping
import pytest
import torch
from support.poison import poisoned_empty

__all__ = ["poisoned_empty"]


@pytest.fixture
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """``with threads(n):`` runs its body with torch's number of threads set to n."""

    @contextmanager
    def set_threads(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return set_threads


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: the shape annotations of the ops are not enforced, only their own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
