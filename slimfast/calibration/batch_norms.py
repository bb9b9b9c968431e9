"""Batch norms that keep running statistics, and the layers whose output goes right into one."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from slimfast.calibration.consumers import Consumer

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def norms_of(network: nn.Module) -> Mapping[str, Any]:
    """Find the batch norms that keep running statistics, by path."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, _BATCH_NORM) and module.running_mean is not None
    }


@contextmanager
def followed(network: nn.Module, consumers: Sequence[Consumer], found: set[str]) -> Iterator[None]:
    """Find, in forwards, the layers whose output goes right into a batch norm."""
    # By a weak reference: it would stay for longer than the forward wants it.
    made: dict[str, weakref.ref[Tensor]] = {}

    def made_by(weight: str, module: nn.Module, inputs: Any, output: Any) -> None:
        made.clear()
        if isinstance(output, Tensor):
            made[weight] = weakref.ref(output)

    def taken(module: nn.Module, inputs: Any) -> None:
        if inputs:
            found.update(weight for weight, output in made.items() if output() is inputs[0])

    with ExitStack() as hooks:
        for consumer in consumers:
            module = network.get_submodule(consumer.module)
            hooks.callback(module.register_forward_hook(functools.partial(made_by, consumer.weight)).remove)
        for norm in norms_of(network).values():
            hooks.callback(norm.register_forward_pre_hook(taken).remove)
        yield
