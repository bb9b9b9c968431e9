"""A calibration made once more, with its own samples, of a network that has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration.data import Calibration
from slimfast.calibration.moments import calibrate
from slimfast.errors import ArgumentError
from slimfast.graph.channel_graph import ChannelGraph

_MASK = "attention_mask"


def check_repeatable(calibration: Calibration, what: str) -> None:
    """Refuse a calibration that cannot be made once more, which ``what`` asks for: the masks of its samples
    have to be an argument of the network.
    """
    masks = calibration.masks or (None,) * len(calibration.batches)
    for mask, (args, kwargs) in zip(masks, calibration.batches, strict=True):
        if mask is not None and _MASK not in kwargs:
            raise ArgumentError(f"slim: expected masks named {_MASK} for {what}, got a calibration of others")
        if args and kwargs:
            raise ArgumentError(
                f"slim: expected batches of arguments by place or by name for {what}, got both"
            )


def calibrated_again(
    network: nn.Module, graph: ChannelGraph, calibration: Calibration, *, progress: Progress | None = None
) -> Calibration:
    """Calibrate a network with the samples of a calibration of what it was; the ``graph`` is its own."""
    batches = [_as_batch(*batch) for batch in calibration.batches]
    return calibrate(network, graph, batches, samples=calibration.samples, progress=progress)


def _as_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args or dict(kwargs)
