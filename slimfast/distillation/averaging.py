"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slimfast.distillation.output_losses import widened


class MovingAverage:
    """Average the floating weights and buffers w of ``model``: a <- d a + (1 - d) w after each update.

    d is ``decay``, and less in the beginning, (1 + t) / (10 + t) in update t from 1, so that the first
    weights do not stay in it (Polyak and Juditsky 1992 average all alike; this form is TensorFlow's).
    Averaged in float32 or wider: of 16 bits a step of 1 - d is rounded away.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.updates = 0
        self.tensors = {name: widened(tensor).clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        state = self._model.state_dict()
        return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in self._weights().items():
            self.tensors[name].lerp_(widened(tensor), 1 - decay)

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from what was saved."""
        self.updates = updates
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the averages."""
        for name, tensor in self._weights().items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def used(self) -> Iterator[None]:
        """Lend the model the averages inside the block; after it the model has its own weights again."""
        own = {name: tensor.clone() for name, tensor in self._weights().items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._weights().items():
                    tensor.copy_(own[name])
