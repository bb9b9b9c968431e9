"""The first batch of a training: what does not fit together is said before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from slimfast.distillation.batches import call, describe, evaluating
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.network_outputs import common_outputs, output_named, teacher_output
from slimfast.distillation.training_setup import Loss, Setup
from slimfast.errors import SlimfastError

_log = logging.getLogger(__name__)


def settled_loss(setup: Setup, inputs: Any, targets: Any) -> Loss:
    """Let the loss find on a batch which outputs there are, and the kind of each.

    Raises:
        SlimfastError: a network fails, or outputs and targets do not belong together.
    """
    outputs = []
    with evaluating(setup.student), torch.no_grad():
        for name, model in (("teacher", setup.teacher), ("student", setup.student)):
            try:
                outputs.append(call(model, inputs))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise SlimfastError(f"the {name} fails on inputs {describe(inputs)}: {reason}") from error
    if not isinstance(setup.loss, DistillationLoss):
        return setup.loss
    teacher, student = outputs
    _check_shapes(setup.loss, student, teacher)
    loss = _shared(setup, setup.loss.settled(student, teacher, targets, inputs, setup.student))
    for c in loss.compared(student, teacher, targets):
        _log.info("output %s: %s", c.name or "logits", c.kind)
        if c.teacher is not None:
            _check_finite(c.teacher, c.kind)
        if c.kind == "softmax" and c.targets is not None:
            _check_indices(c.targets, c.student.shape[c.class_dim], loss.ignore_index)
    return loss


def _shared(setup: Setup, loss: DistillationLoss) -> DistillationLoss:
    """Give all processes what the main one found: each has another batch."""
    if setup.recipe.processes > 1:
        found = [loss]
        torch.distributed.broadcast_object_list(found, 0)
        return found[0]
    return loss


def _check_shapes(loss: DistillationLoss, student: Any, teacher: Any) -> None:
    names = tuple(o.name for o in loss.outputs) or common_outputs(student, teacher)
    for name in names if loss.soft else ():
        got, wanted = tuple(output_named(student, name).shape), tuple(teacher_output(teacher, name).shape)
        if got != wanted:
            which = f"output {name}" if name else "output"
            raise SlimfastError(f"distill: the student's {which} is {got}, the teacher's {wanted}")


def _check_finite(teacher: Tensor, kind: str) -> None:
    # A class that a network rules out is -inf.
    masked = teacher.isneginf() if kind in ("softmax", "sigmoid") else False
    if not (torch.isfinite(teacher) | masked).all():
        raise SlimfastError("distill: the teacher's output is not finite on the first batch")


def _check_indices(targets: Tensor, classes: int, ignore_index: int | None) -> None:
    if targets.is_floating_point() or not targets.numel():
        return
    highest = int(targets.where(targets != ignore_index, -1).max()) if ignore_index is not None else -1
    if highest >= classes:
        remedy = f"; if it marks what does not count, pass DistillationLoss(ignore_index={highest})"
        raise SlimfastError(
            f"distill: target {highest} on the first batch, but the student has {classes} classes{remedy}"
        )
