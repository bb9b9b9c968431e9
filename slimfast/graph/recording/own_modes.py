"""Networks that checkpoint inside their forward, or run it in inference mode, run without either."""

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
    exchanged: tuple[tuple[Any, str, Any], ...] = (
        (torch.utils.checkpoint, "CheckpointFunction", _Called),
        (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _nothing),
        (torch.inference_mode, "__enter__", _enter),
    )
    before = [getattr(place, name) for place, name, _ in exchanged]
    try:
        for place, name, other in exchanged:
            setattr(place, name, other)
        yield
    finally:
        for (place, name, _), one in zip(exchanged, before, strict=True):
            setattr(place, name, one)
