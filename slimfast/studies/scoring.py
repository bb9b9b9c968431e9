"""Scores that a user's function gives, and how well two orders agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from slimfast.arrays import FloatArray
from slimfast.errors import ArgumentError, ArgumentTypeError

# From a network in eval mode to its score.
Evaluate: TypeAlias = Callable[[nn.Module], Any]


def check_evaluate(evaluate: Evaluate | None, verb: str) -> None:
    """Refuse what cannot be called."""
    if evaluate is not None and not callable(evaluate):
        raise ArgumentTypeError(
            f"{verb}: expected evaluate to be a function from a network to its score, "
            f"got {type(evaluate).__name__}"
        )


def score_of(evaluate: Evaluate | None, network: nn.Module, verb: str) -> float | None:
    """Score a network in eval mode; None where there is nothing to score by.

    ``TypeError`` for a function that returns no number, ``ValueError`` for one that is not finite.
    """
    if evaluate is None:
        return None
    found = evaluate(network.eval())
    single = isinstance(found, (int, float, np.integer, np.floating)) and not isinstance(found, bool)
    if not single and not (isinstance(found, (Tensor, np.ndarray)) and math.prod(found.shape) == 1):
        raise ArgumentTypeError(f"{verb}: expected evaluate to return a number, got {type(found).__name__}")
    score = float(found)
    if not math.isfinite(score):
        raise ArgumentError(f"{verb}: expected evaluate to return a finite number, got {score}")
    return score


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation; None where one of them orders nothing."""
    if len(first) < 2:
        return None
    a, b = _ranks(np.asarray(first, dtype=np.float64)), _ranks(np.asarray(second, dtype=np.float64))
    if a.std() == 0.0 or b.std() == 0.0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    """Rank values; those that are equal share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means = ends - (counts - 1) / 2
    ranks: FloatArray = means[inverse]
    return ranks
