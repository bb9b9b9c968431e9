"""Massive tokens: the few that carry most of what a layer reads, and count for no more than they should.

In transformers some layers read one token, often the first, with thousands of times the energy of all others
(attention sinks, registers). Whatever looks at variances or squared errors then looks at this token alone:
one channel explains nearly everything. A norm stands behind such layers, so that it is a token's relative
error that counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimfast.calibration.consumers import Consumer

# The most times its sample's median energy that a token counts: the directions of massive tokens stand out
# still, so that the channels that carry them are kept.
BOUND = 32.0


def shrinking(consumer: Consumer, x: Tensor, samples: int, counting: Tensor | None) -> Tensor | None:
    """Find the factors that bring massive tokens down to the bound, (positions) of what a layer reads; None
    where no token is massive, if that is known without a wait.

    A token is massive where its energy, the sum of squares of what the layer reads of it, is beyond ``BOUND``
    times the median of its sample's tokens; factors are 1 elsewhere. So they depend on each sample alone.
    Where it cannot be told which positions are whose, as at an expert that gets a choice of the tokens, they
    count as one sample. ``counting``: which of them are no padding. Convolutions, and layers that read one
    position of a sample, have no tokens.
    """
    if consumer.taps or consumer.run > 1:
        return None
    view = consumer.laid_out(x)
    shape = view.shape[:-1]
    if len(shape) > 1 and len(view) == samples:
        rows = samples
    elif shape.numel() == samples:
        return None
    else:
        rows = samples if shape.numel() % samples == 0 else 1
    norms = torch.linalg.vector_norm(view, dim=-1, dtype=torch.promote_types(view.dtype, torch.float32))
    told = norms if counting is None else norms.masked_fill(~counting, torch.nan)
    middle = told.reshape(rows, -1).nanmedian(1, keepdim=True).values
    bound = (BOUND**0.5 * middle).expand(rows, shape.numel() // rows).reshape(shape)
    # Where most tokens are 0 nothing is known of what is usual.
    massive = (told > bound) & (bound > 0)
    if is_near(massive) and not bool(massive.any()):
        return None
    return torch.where(massive, bound / norms, 1.0)


def is_near(x: Tensor) -> bool:
    """Say whether to look at a tensor's values makes nobody wait, as it does for a GPU."""
    return x.device.type == "cpu"
