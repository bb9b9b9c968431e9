"""The score of a student during its training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from slimfast.distillation.batches import evaluating
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.scores import count_right
from slimfast.distillation.training_setup import Setup
from slimfast.errors import ArgumentTypeError, SlimfastError


def check_evaluate(setup: Setup) -> None:
    """Score one batch now, rather than fail after the first epoch."""
    evaluate = setup.evaluate
    if evaluate is None or callable(evaluate):
        return
    if isinstance(evaluate, Iterator):
        raise ArgumentTypeError("evaluate is an iterator, which is empty after one epoch: pass a list")
    if not count_right(setup.student, islice(evaluate, 1), class_dim=_class_dim(setup))[1]:
        raise SlimfastError("evaluate has no targets")


def score_of(setup: Setup) -> float | None:
    """The student's score as it is now, the same on all processes; None where nothing was asked for."""
    evaluate, device = setup.evaluate, setup.accelerator.device
    if evaluate is None:
        return None
    if callable(evaluate):
        with evaluating(setup.student):
            score = torch.tensor(float(evaluate(setup.student)), dtype=torch.float64)
        if setup.recipe.processes > 1:
            score = score.to(device)
            torch.distributed.broadcast(score, 0)
        return float(score)
    counts = count_right(
        setup.student,
        evaluate,
        class_dim=_class_dim(setup),
        turns=setup.recipe.processes,
        turn=setup.accelerator.process_index,
    )
    right, total = setup.accelerator.reduce(torch.tensor(counts, dtype=torch.float64, device=device), "sum")
    return float(right / total)


def _class_dim(setup: Setup) -> int:
    return setup.loss.class_dim if isinstance(setup.loss, DistillationLoss) else -1
