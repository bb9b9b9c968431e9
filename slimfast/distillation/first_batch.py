"""The first batch of a training: what does not fit together is said before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slimfast.distillation.batches import call, describe, evaluating
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.network_outputs import logits_of
from slimfast.distillation.training_setup import Setup
from slimfast.errors import SlimfastError


def try_networks(setup: Setup, inputs: Any, targets: Tensor | None) -> None:
    """Run both networks on a batch and see that the loss can compare them.

    Raises:
        SlimfastError: a network fails, or the outputs and targets do not belong together.
    """
    outputs = []
    with evaluating(setup.student), torch.no_grad():
        for name, model in (("teacher", setup.teacher), ("student", setup.student)):
            try:
                outputs.append(call(model, inputs))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise SlimfastError(f"the {name} fails on inputs {describe(inputs)}: {reason}") from error
    if isinstance(setup.loss, DistillationLoss):
        _check_outputs(outputs[0], outputs[1], targets, setup.loss)


def _check_outputs(teacher: Any, student: Any, targets: Tensor | None, loss: DistillationLoss) -> None:
    expected, logits = logits_of(teacher), logits_of(student)
    if not torch.isfinite(expected).all():
        raise SlimfastError("distill: the teacher's output is not finite on the first batch")
    if loss.soft and logits.shape != expected.shape:
        got, wanted = tuple(logits.shape), tuple(expected.shape)
        raise SlimfastError(f"distill: the student's output is {got}, the teacher's {wanted}")
    if loss.hard and targets is not None and not targets.is_floating_point() and targets.numel():
        classes, highest = logits.shape[loss.class_dim], int(targets.max())
        if highest >= classes:
            raise SlimfastError(
                f"distill: target {highest} on the first batch, but the student has {classes} classes"
            )
