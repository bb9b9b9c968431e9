"""How far the knobs of a uniform plan are turned: by explained variance, or by what the output feels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from slimfast.arrays import FloatArray
from slimfast.calibration import ErrorCurve
from slimfast.graph import ChannelGraph
from slimfast.huggingface.knobs import Knob
from slimfast.plans.costs import CostModel
from slimfast.plans.limits import Limits
from slimfast.spectra import Spectrum

# The step of each knob from one number in [0, 1]: the larger that is, the more stays.
Turned: TypeAlias = Callable[[float], list[int]]


def by_variance(knobs: Sequence[Knob], spectra: Mapping[str, Spectrum]) -> Turned:
    """Turn each knob to the first step that keeps the mean share of its groups' units at one explained
    variance.
    """

    def step(knob: Knob, tau: float) -> int:
        shares = [spectra[g.name].width(explained_variance=tau) / g.n if tau else 0.0 for g in knob.groups]
        wanted = float(np.mean(shares))
        return next((i for i, share in enumerate(knob.steps) if share >= wanted), len(knob.steps) - 1)

    return lambda tau: [step(knob, tau) for knob in knobs]


def by_gain(
    knobs: Sequence[Knob], curves: Mapping[str, ErrorCurve], graph: ChannelGraph, limits: Limits
) -> Turned:
    """Turn each knob to where the error of its groups, summed, and its cost at one price are least.

    The cost is that of the network with the other knobs left whole, in shares of the limits. A knob of groups
    without a curve stays whole.
    """
    costs = CostModel(graph)

    def cost(widths: Mapping[str, int]) -> float:
        priced = limits.price(costs.vector(widths))
        return sum(priced[name] / limit for name, limit in limits.most.items())

    errors: list[FloatArray | None] = []
    prices: list[FloatArray] = []
    for knob in knobs:
        known = all(group.name in curves for group in knob.groups)
        at = [knob.widths(step) for step in range(len(knob.steps))]
        errors.append(
            np.array([sum(float(curves[name].residual[w]) for name, w in widths.items()) for widths in at])
            if known
            else None
        )
        prices.append(np.array([cost(widths) for widths in at]))
    most = sum(float(error[0]) for error in errors if error is not None) or 1.0

    def step(error: FloatArray | None, price: FloatArray, share: float) -> int:
        if error is None:
            return len(price) - 1
        if share <= 0.0:
            return 0
        worth = most * (1.0 - share) / share
        # The last of the best: at no price all stays.
        return len(price) - 1 - int(np.argmin((error + worth * price)[::-1]))

    def turned(share: float) -> list[int]:
        return [step(error, price, share) for error, price in zip(errors, prices, strict=True)]

    return turned
