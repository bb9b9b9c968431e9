"""A device of known stairs: it computes what a forward takes from its operations, and no clock runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.graph.recording.inputs import arguments


def stairs_of_8(width: int) -> int:
    """Round up to a multiple of 8."""
    return -(-width // 8) * 8


class _Seen(TorchDispatchMode):
    def __init__(self, price: Callable[[int, int], float]) -> None:
        super().__init__()
        self.price = price
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::convolution", "aten::linear", "aten::addmm", "aten::mm"):
            weight = args[2] if name == "aten::addmm" else args[1]
            out, into = (
                (weight.shape[1], weight.shape[0])
                if name in ("aten::addmm", "aten::mm")
                else weight.shape[:2]
            )
            self.seconds += self.price(int(into), int(out))
        return output


class Device:
    """Seconds of a module on an example: of each product ``price(in, out)``, and nothing of the rest."""

    def __init__(self, price: Callable[[int, int], float] | None = None, slower: float = 1.0) -> None:
        self.price = price or (lambda a, b: 1e-6 * stairs_of_8(a) * stairs_of_8(b))
        self.slower = slower
        self.calls = 0

    @torch.no_grad()
    def __call__(self, module: nn.Module, example: Any) -> float:
        self.calls += 1
        args, kwargs = arguments(example)
        with _Seen(self.price) as seen:
            module(*args, **kwargs)
        return seen.seconds * self.slower
