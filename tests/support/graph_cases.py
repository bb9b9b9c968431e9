"""Networks of modules by name and a forward over them, for tests of channel graphs."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Modules by name and a forward over them."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self._forward = forward

    def forward(self, *args, **kwargs):
        return self._forward(self, *args, **kwargs)


def conv(i, o, k=1, **keywords):
    return nn.Conv2d(i, o, k, padding=k // 2, **keywords)
