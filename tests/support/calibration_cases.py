"""What layers read, taken apart by hand, for tests of calibration."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def read_by(model: nn.Sequential, layer: int, x: Tensor) -> Tensor:
    """(variables, positions) at the input of a layer of a sequential network, float64."""
    with torch.no_grad():
        found = model.double()[:layer](x.double())
    model.float()
    return found.movedim(1, 0).reshape(found.shape[1], -1)
