"""The score of a student during its training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from slimfast.distillation.batches import evaluating
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.scores import mean_score, tally
from slimfast.distillation.training_setup import Setup
from slimfast.errors import ArgumentTypeError, SlimfastError


def _number(score: Any) -> float:
    """Take what a user's function gave; a score that is no number warns, and no epoch with it is the best."""
    try:
        found = float(score)
    except (TypeError, ValueError, RuntimeError):
        kind = type(score).__name__
        raise ArgumentTypeError(f"evaluate: expected a function that returns a number, got {kind}") from None
    if math.isnan(found):
        warnings.warn("evaluate returned nan: this epoch cannot be the best one", stacklevel=2)
    return found


class Evaluation:
    """Score a student by what was given: batches, a function, or nothing."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._loss = setup.loss if isinstance(setup.loss, DistillationLoss) else DistillationLoss()
        evaluate = setup.evaluate
        if evaluate is None or callable(evaluate):
            return
        if isinstance(evaluate, Iterator):
            raise ArgumentTypeError("evaluate is an iterator, which is empty after one epoch: pass a list")
        # One batch now rather than an error after the first epoch; all processes learn from the same one.
        self._loss, sums = tally(setup.student, islice(evaluate, 1), self._loss)
        if not sums[:, 1].any():
            raise SlimfastError("evaluate has no targets in its first batch")

    def score(self) -> float | None:
        """Score the student as it is now, alike on all processes; None where nothing was asked for."""
        setup, evaluate = self._setup, self._setup.evaluate
        if evaluate is None:
            return None
        if callable(evaluate):
            with evaluating(setup.student):
                score = torch.tensor(_number(evaluate(setup.student)), dtype=torch.float64, device="cpu")
            if setup.recipe.processes > 1:
                score = score.to(setup.accelerator.device)
                torch.distributed.broadcast(score, 0)
            return float(score)
        processes, process = setup.recipe.processes, setup.accelerator.process_index
        _, sums = tally(setup.student, evaluate, self._loss, turns=processes, turn=process)
        return mean_score(setup.accelerator.reduce(sums, "sum"))
