"""Batches of texts: tokens that both networks know, and rows that say anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from slimfast.calibration.tokens import TOKENS, check_tokens
from slimfast.distillation.batches import mask_of, split_batch
from slimfast.errors import SlimfastError


def check_of(*networks: nn.Module) -> Callable[[Any, str], None]:
    """Make the function that refuses a batch of texts, named second, which these networks cannot learn from.

    It raises :class:`SlimfastError` for tokens beyond a vocabulary, more positions than a network has,
    and for a row that is padding alone, whose attention is over nothing. Batches of anything else pass.
    """

    def check(batch: Any, where: str) -> None:
        inputs, _ = split_batch(batch)
        if not isinstance(inputs, Mapping) or not isinstance(inputs.get(TOKENS), Tensor):
            return
        for network in networks:
            check_tokens(network, inputs[TOKENS], "distill", where)
        mask = mask_of(inputs)
        if mask is None or mask.shape != inputs[TOKENS].shape:
            return
        empty = (~mask.bool().any(1)).nonzero()
        if len(empty):
            raise SlimfastError(
                f"distill: row {int(empty[0])} of {where} is padding alone: its mask is 0 everywhere; "
                f"leave it out"
            )

    return check
