"""What a training borrows and gives back: an Accelerator, and networks on its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slimfast.distillation.batches import device_of, keeping_modes
from slimfast.distillation.sharding import is_sharded
from slimfast.errors import ArgumentError, SlimfastError


@contextmanager
def accelerated(given: Any, precision: str | None) -> Iterator[Any]:
    """Lend the user's Accelerator, or one of our own that leaves nothing behind."""
    if given is not None:
        if precision not in (None, given.mixed_precision):
            theirs = given.mixed_precision
            raise ArgumentError(f"distill: mixed_precision={precision!r}, but the accelerator has {theirs!r}")
        yield given
        return
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise SlimfastError("distill needs accelerate: install the extra 'slimfast[distill]'") from error
    # accelerate keeps the first precision for the whole process; the next call may want another.
    first = not AcceleratorState._shared_state
    accelerator = None
    try:
        accelerator = Accelerator(mixed_precision=precision)
        yield accelerator
    finally:
        if accelerator is not None:
            accelerator.free_memory()
        if first:
            AcceleratorState._reset_state()


@contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold ``model`` on ``device`` inside the block; after it it is where it was, in its modes, unmarked.

    One that is sharded, or becomes so, stays where it is.
    """
    before, attributes = device_of(model), set(vars(model))
    spread = len({parameter.device for parameter in model.parameters()}) > 1
    with keeping_modes(model):
        try:
            if not spread and not is_sharded(model):
                model.to(device)
            yield
        finally:
            # accelerate leaves a wrapped forward and a mark behind.
            for name in set(vars(model)) - attributes:
                del vars(model)[name]
            if not spread and not is_sharded(model):
                model.to(before)
