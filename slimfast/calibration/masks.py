"""Which positions are padding: the mask of a batch, and what it says of a layer's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentTypeError, SlimfastError

# The name of the argument that is the mask, or a function that finds it in (args, kwargs).
MaskOption: TypeAlias = str | Callable[[tuple[Any, ...], dict[str, Any]], Tensor | None]


def mask_of(batch: Arguments, mask: MaskOption, where: str) -> Tensor | None:
    """Find the mask of a batch: (samples, positions), True where there is no padding; None where it has none.

    Raises :class:`SlimfastError` for a sample that is padding alone, which says nothing.
    """
    found = batch[1].get(mask) if isinstance(mask, str) else mask(*batch)
    if found is None or (isinstance(mask, str) and not (isinstance(found, Tensor) and found.dim() == 2)):
        return None
    if not isinstance(found, Tensor) or found.dim() < 2:
        got = f"{found.dim()} dimensions" if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentTypeError(f"calibrate: expected a mask of (samples, positions), got {got} ({where})")
    counts = found.detach() != 0
    empty = (~counts.flatten(1).any(1)).nonzero()
    if len(empty):
        raise SlimfastError(
            f"calibrate: sample {int(empty[0])} of {where} is padding alone: its mask is 0 everywhere; "
            f"leave it out"
        )
    return counts


def positions_that_count(shape: torch.Size, mask: Tensor | None) -> Tensor | None:
    """Lay a mask out over positions of this ``shape``; None where all of them count.

    They are (samples, positions, ...) or, flattened, (samples * positions, ...). A layer that reads others,
    as one behind pooling or one that is given a choice of the tokens, counts all of its own.
    """
    if mask is None or bool(mask.all()):
        return None
    for own in (mask, mask.reshape(-1)):
        if shape[: own.dim()] == own.shape:
            return own.reshape(*own.shape, *[1] * (len(shape) - own.dim())).expand(shape)
    return None
