"""Networks that checkpoint inside their forward, or run it in inference mode, run without either."""

from __future__ import annotations

import threading
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


def _enter(self: torch.inference_mode) -> None:
    """Enter a block without gradients in place of inference mode."""
    block: Any = torch.no_grad() if self.mode else torch._C._InferenceMode(False)
    self._inference_mode_context = block
    block.__enter__()


@contextmanager
def without_own_modes() -> Iterator[None]:
    """Inside the block, let ``torch.utils.checkpoint`` call what it is given, and ``torch.inference_mode`` be
    ``torch.no_grad``.

    What a backward pass computes again knows no hooks of the forward: in one form of checkpointing its layers
    felt nothing then, in the other PyTorch refuses. A tensor of inference mode does not tell whether it was
    written to. The exchange is of the whole process: a training in another thread keeps its activations
    meanwhile, to the same gradients.
    """
    _exchange.begin()
    try:
        yield
    finally:
        _exchange.end()


class _Exchange:
    """What stands in PyTorch's modules meanwhile: from the first block that begins to the last one that ends,
    whichever threads they are in.
    """

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._before: list[tuple[Any, str, Any]] = []

    def begin(self) -> None:
        """Put them in with the first block."""
        others: tuple[tuple[Any, str, Any], ...] = (
            (torch.utils.checkpoint, "CheckpointFunction", _Called),
            (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _nothing),
            (torch.inference_mode, "__enter__", _enter),
        )
        with self._lock:
            if not self._blocks:
                self._before = [(place, name, getattr(place, name)) for place, name, _ in others]
                for place, name, other in others:
                    setattr(place, name, other)
            self._blocks += 1

    def end(self) -> None:
        """Put back what was there with the last one."""
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                for place, name, before in self._before:
                    setattr(place, name, before)


_exchange = _Exchange()
