"""How often a network is right."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from slimfast.distillation.batches import call, device_of, evaluating, split_batch, to_device
from slimfast.distillation.network_outputs import logits_of
from slimfast.errors import SlimfastError


def accuracy(model: nn.Module, batches: Iterable[Any], *, class_dim: int = -1) -> float:
    """Share of targets in [0, 1] that ``model`` gives its highest logit, in eval mode, on the model's device.

    Targets are class indices; negative ones (padding) are not counted. The mode of ``model`` is restored.

    Raises:
        SlimfastError: no target in any batch.
    """
    right, total = count_right(model, batches, class_dim=class_dim)
    if total == 0:
        raise SlimfastError("accuracy: no targets in the batches")
    return right / total


def count_right(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    class_dim: int = -1,
    turns: int = 1,
    turn: int = 0,
    autocast: AbstractContextManager[Any] | None = None,
) -> tuple[int, int]:
    """(right, all) targets over every ``turns``-th batch from ``turn``; see :func:`accuracy`.

    In the last round a process without a batch of its own runs the first one's and does not count it: of a
    sharded model all processes must run the same number of forwards.
    """
    device = device_of(model)
    right = torch.zeros((), dtype=torch.int64, device=device)
    total = torch.zeros_like(right)
    with evaluating(model), torch.no_grad():
        waiting = iter(batches)
        while in_turn := list(itertools.islice(waiting, turns)):
            mine = turn < len(in_turn)
            inputs, targets = split_batch(to_device(in_turn[turn if mine else 0], device))
            if targets is None:
                raise SlimfastError("accuracy: a batch has no targets")
            with autocast or nullcontext():
                found = logits_of(call(model, inputs)).argmax(dim=class_dim)
            if found.shape != targets.shape:
                got, wanted = tuple(targets.shape), tuple(found.shape)
                raise SlimfastError(f"accuracy: targets are {got}, expected class indices {wanted}")
            right += mine * ((found == targets) & (targets >= 0)).sum()
            total += mine * (targets >= 0).sum()
    return int(right), int(total)
