"""How good a network is: how often it is right, or how near."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.batches import call, device_of, evaluating, mask_of, split_batch, to_device
from slimfast.distillation.comparisons import Comparison
from slimfast.distillation.kind_losses import score
from slimfast.distillation.losses import DistillationLoss
from slimfast.errors import ArgumentError, SlimfastError


def accuracy(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    class_dim: int = -1,
    shift: bool | None = None,
    ignore_index: int | None = None,
) -> float:
    """Measure the share of targets that ``model`` gives its highest logit, in eval mode, on its device.

    Targets are class indices; negative ones, ``ignore_index`` and what the batch's attention mask hides are
    not counted. Of targets that are 0 or 1 in the shape of the logits, the share that has the logit's sign.
    ``shift``, ``ignore_index``: as in :class:`DistillationLoss`. The mode of ``model`` is restored.

    Example:
        before, after = accuracy(model, batches), accuracy(thin, batches)

    Raises:
        SlimfastError: no target in any batch, or targets that are no classes.
    """
    loss = DistillationLoss(soft=0.0, hard=1.0, class_dim=class_dim, shift=shift, ignore_index=ignore_index)
    loss, sums = tally(model, batches, loss)
    if kinds := {str(o.kind) for o in loss.outputs} - {"softmax", "sigmoid"}:
        raise SlimfastError(f"accuracy: expected targets that are classes, got values ({', '.join(kinds)})")
    return mean_score(sums)


def tally(
    model: nn.Module,
    batches: Iterable[Any],
    loss: DistillationLoss,
    *,
    turns: int = 1,
    turn: int = 0,
) -> tuple[DistillationLoss, Tensor]:
    """Add up each output's scores over every ``turns``-th batch from ``turn``.

    Gives ``loss`` as it was settled by the first batch, and (outputs, 2): the sums and the numbers of scores.

    In the last round a process without a batch of its own runs the first one's and does not count it: of a
    sharded model all processes must run the same number of forwards.
    """
    device = device_of(model)
    sums = torch.zeros(len(loss.outputs), 2, dtype=torch.float64, device=device)
    with evaluating(model), torch.no_grad():
        waiting = iter(batches)
        while in_turn := list(itertools.islice(waiting, turns)):
            mine = turn < len(in_turn)
            inputs, targets = split_batch(to_device(in_turn[turn if mine else 0], device))
            if targets is None:
                raise SlimfastError("accuracy: a batch has no targets")
            output = call(model, inputs)
            try:
                loss = loss.settled(output, None, targets, inputs, model)
                compared = loss.compared(output, None, targets, mask_of(inputs))
            except ArgumentError as error:
                raise SlimfastError(f"accuracy: {str(error).removeprefix('DistillationLoss: ')}") from error
            found = [_score(c) for c in compared]
            sums = mine * torch.stack(found) + (sums if len(sums) else 0)
    return loss, sums


def mean_score(sums: Tensor) -> float:
    """Take the mean of the mean scores of the outputs that have targets.

    Raises:
        SlimfastError: no output has any.
    """
    labelled = sums[sums[:, 1] > 0]
    if not len(labelled):
        raise SlimfastError("accuracy: no targets in the batches")
    return float((labelled[:, 0] / labelled[:, 1]).mean())


def _score(c: Comparison) -> Tensor:
    if c.targets is None:
        return torch.zeros(2, dtype=torch.float64, device=c.student.device)
    return torch.stack(score(c))
