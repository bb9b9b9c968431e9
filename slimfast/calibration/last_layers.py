"""Heads of language models at the end of a forward: what comes behind them nobody looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from slimfast.calibration.batch_norms import norms_of
from slimfast.calibration.consumers import Consumer
from slimfast.storage.stored_tensors import is_long


class Ending:
    """The place where forwards may end that are watched at ``consumers`` alone.

    A head's logits are as large as all that a network holds besides, and its weight, which stays in a file,
    is larger than a block. ``heads``: linear layers with such long weights behind all consumers, or the last
    of them; none where batch norms look at what layers give out. ``reached``: a head is, and all consumers
    have been seen.
    """

    def __init__(self, network: nn.Module, consumers: Iterable[Consumer], order: Mapping[str, int]) -> None:
        """Find the heads; ``order``: which layer comes first."""
        self._waiting = {consumer.module for consumer in consumers}
        known = [order.get(path, -1) for path in self._waiting]
        self.heads = {
            path: module
            for path, module in ({} if norms_of(network) else dict(network.named_modules())).items()
            if isinstance(module, nn.Linear) and is_long(module._parameters.get("weight"))
            if path in order and order[path] >= max(known, default=-1)
        }
        self.reached = False

    def settle(self, path: str) -> None:
        """Take note that all forwards have come to a layer."""
        self._waiting.discard(path)
        self.reached = path in self.heads and not self._waiting
