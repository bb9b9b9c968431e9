"""What a rotation of heads has found, kept with the network, and the units that it says to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from slimfast.arrays import FloatArray, IntArray
from slimfast.errors import SlimfastError
from slimfast.plans import GroupPlan
from slimfast.plans.fingerprint import fingerprint
from slimfast.wrappers import unwrapped

_ATTRIBUTE = "_slimfast_rotation"


@dataclass(frozen=True, slots=True, eq=False)
class RotationReport:
    """What :func:`slimfast.rotate_heads` did.

    Attributes:
        losses: Of each group that was rotated, what a cut to its first r units loses, (n + 1,) float64: the
            share of the squares of each kind of product (query and key, value and output) beyond the first r
            dims of every head, added up; of r = n it is 0, of r = 0 the number of kinds.
        left: Why other groups of head dims were left as they are.
        error: How far the outputs are from the original's, as a share of their size, both in float64 where it
            fits: what is left of it is the rounding of the weights to the network's own dtype.
        weights: The fingerprint of the rotated weights; others have no order.

    Example:
        found = slimfast.rotation_report(rotated)
        half = {name: loss[len(loss) // 2] for name, loss in found.losses.items()}
    """

    losses: Mapping[str, FloatArray]
    left: Mapping[str, str]
    error: float
    weights: str | None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"rotated {len(self.losses)} groups of head dims, output off by {self.error:.2g} of its size"
        for name, losses in self.losses.items():
            n = len(losses) - 1
            yield f"  {name}: half of its {n} dims have {losses[n // 2] / losses[0]:.1%} of the squares"
        yield from (f"  left as it is: {name}: {reason}" for name, reason in self.left.items())


def attach_rotation_report(rotated: nn.Module, report: RotationReport) -> None:
    """Keep a report with its network."""
    object.__setattr__(rotated, _ATTRIBUTE, report)


def rotation_report(rotated: nn.Module) -> RotationReport:
    """Tell which head dims of a network were rotated, what a cut of them loses, and what was left.

    Args:
        rotated: What :func:`slimfast.rotate_heads` returned.

    Returns:
        Its report.

    Raises:
        SlimfastError: For any other network.

    Example:
        print(slimfast.rotation_report(rotated))
    """
    found = vars(unwrapped(rotated)).get(_ATTRIBUTE)
    if not isinstance(found, RotationReport):
        raise SlimfastError(
            f"{type(rotated).__name__}: expected a network of rotate_heads, got one of another making"
        )
    return found


def given_units(model: nn.Module, groups: Iterable[GroupPlan]) -> dict[str, IntArray]:
    """Choose the units of those groups that leave no choice: all of what stays whole, and the first ones of
    head dims that were sorted, while the weights are those that were.
    """
    given = {g.name: np.arange(g.n, dtype=np.int64) for g in groups if g.width == g.n}
    report = vars(model).get(_ATTRIBUTE)
    if isinstance(report, RotationReport) and report.losses and report.weights == fingerprint(model):
        sorted_ones = (g for g in groups if len(report.losses.get(g.name, ())) == g.n + 1)
        given |= {g.name: np.arange(g.width, dtype=np.int64) for g in sorted_ones}
    return given
