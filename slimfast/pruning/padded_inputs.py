"""Inputs with padding, for models that take a mask: some attentions go another way where there is one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.graph.recording.network import Network

MASK = "attention_mask"
# Fewer positions have none to spare.
_FEWEST = 3


def padded(network: Network, inputs: Arguments) -> Arguments | None:
    """Hide the last third of the first sample's positions from a network that takes tokens with a mask.

    None where it takes none, and where the inputs have padding already. Padding is at the end, so that under
    a causal mask as well every position sees one that counts.
    """
    args, kwargs = inputs
    tokens: Any = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 2:
        return None
    if tokens.shape[1] < _FEWEST or not len(tokens) or MASK not in _parameters(network):
        return None
    mask = kwargs.get(MASK)
    if mask is None:
        if len(args) > 1:
            # The mask may be among those.
            return None
        mask = torch.ones_like(tokens)
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape or not bool(mask.all()):
        return None
    mask = mask.clone()
    mask[0, -(tokens.shape[1] // 3) :] = 0
    return args, {**kwargs, MASK: mask}


def _parameters(network: Network) -> set[str]:
    return set(inspect.signature(type(network.model).forward).parameters)
