"""Tensors of which each process holds a part: the ``DTensor`` of torch.distributed, costly to import."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.errors import SlimfastError


def is_part(tensor: object) -> bool:
    """Whether this process holds only a part of the tensor. Until its class is imported there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def check_whole(tensors: Mapping[str, Tensor], label: str) -> None:
    """Raise :class:`SlimfastError` naming ``label`` and the first tensor of which this process has a part.

    Nothing is gathered unasked: if one process did not come along, the others would wait for ever.
    """
    for name, tensor in tensors.items():
        if is_part(tensor):
            raise SlimfastError(
                f"{label}: expected whole tensors, got a part of {name}: give the folder of "
                "torch.distributed.checkpoint.save, or a full state dict"
            )


def gathered(tree: Any, *, keep: bool) -> Any:
    """Put whole tensors on the CPU in place of parts in nested dicts, lists and tuples.

    All processes call it with the same names in the same order, or it waits for ever. Those without ``keep``
    get None for each part, and hold one whole tensor at a time.
    """
    if is_part(tree):
        whole = tree.detach().full_tensor()
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {name: gathered(value, keep=keep) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value, keep=keep) for value in tree)
    return tree


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Take this process's part of a whole ``tensor`` that every process has, laid out as ``like`` is.

    Where ``like`` is no part of a tensor of that shape, the tensor itself.
    """
    if not is_part(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = like
    # Without a source each process cuts its own copy, and nothing is sent.
    return distribute_tensor(
        tensor.to(layout.device), layout.device_mesh, layout.placements, src_data_rank=None
    )
