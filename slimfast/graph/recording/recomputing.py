"""Networks that checkpoint inside their forward, run without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint


class _Called:
    """In place of the autograd function that runs a part of a network again (``use_reentrant=True``)."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    """What surrounds a part that would be run again (``use_reentrant=False``): nothing."""
    yield


@contextmanager
def without_recomputing() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` call what it is given and keep all activations, inside the block.

    What a backward pass computes again knows no hooks of the forward: in the one form its layers felt nothing
    then, in the other PyTorch refuses. The exchange is of the whole process; a training in another thread
    keeps its activations meanwhile, and its gradients are the same.
    """
    place = torch.utils.checkpoint
    others = {"CheckpointFunction": _Called, "_checkpoint_without_reentrant_generator": _nothing}
    before = {name: getattr(place, name) for name in others}
    try:
        for name, other in others.items():
            setattr(place, name, other)
        yield
    finally:
        for name, one in before.items():
            setattr(place, name, one)
