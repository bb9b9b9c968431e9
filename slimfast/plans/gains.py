"""Widths by marginal gain: a budget goes where it lowers the output's error most for its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slimfast.arrays import FloatArray, IntArray
from slimfast.calibration.curves import ErrorCurve
from slimfast.plans.budget import Ladder, Price, Rounding, Solution, longest_prefix

# The price of a unit depends on the other widths; it is taken anew at each solution, this many times.
_ROUNDS = 8
_TINY = float(np.finfo(np.float64).tiny)


def widths_by_gain(
    curves: Sequence[ErrorCurve],
    limits: Mapping[str, float],
    price: Price,
    rounding: Rounding,
    *,
    whole: Mapping[str, float],
) -> Solution:
    """Find the widths that leave the smallest summed error within every limit, ``params`` and ``macs``.

    A unit's price is the sum over the limits of what it costs as a share of the limit, at the widths of the
    round before; the units with the most gain for their price come first. Of all rounds the one with the
    least error counts, and what it leaves of the budget is spent where a unit still fits.
    Errors as in :func:`slimfast.plans.budget.widths_within`.
    """
    gains = [curve.gains() for curve in curves]
    best: tuple[float, IntArray] | None = None
    widths = rounding.full
    seen: set[bytes] = set()
    for _ in range(_ROUNDS):
        prices = _unit_prices(widths, limits, price, rounding)
        units, _ = longest_prefix(_ladder(gains, prices), limits, price, rounding, whole=whole)
        widths = rounding.apply(units)
        error = sum(float(c.residual[w]) for c, w in zip(curves, widths, strict=True))
        if best is None or error < best[0]:
            best = (error, widths)
        if widths.tobytes() in seen:
            break
        seen.add(widths.tobytes())
    assert best is not None
    return Solution(_filled(best[1], gains, limits, price, rounding), None)


def _filled(
    widths: IntArray,
    gains: Sequence[FloatArray],
    limits: Mapping[str, float],
    price: Price,
    rounding: Rounding,
) -> IntArray:
    """Spend what is left of the budget on the widths: wherever a next step still fits, most gain first."""
    left = set(range(len(widths)))
    prices = _unit_prices(widths, limits, price, rounding)
    while left:
        left = {i for i in left if widths[i] < len(gains[i]) and gains[i][widths[i]] > 0.0}
        for i in sorted(left, key=lambda i: -gains[i][widths[i]] / max(float(prices[i]), _TINY)):
            wider = widths.copy()
            wider[i] += 1
            wider = rounding.apply(wider)
            cost = price(wider)
            if all(cost[name] <= limit for name, limit in limits.items()):
                widths = wider
                break
            left.discard(i)
    return widths


def _unit_prices(
    widths: IntArray, limits: Mapping[str, float], price: Price, rounding: Rounding
) -> FloatArray:
    """Price one unit of each group (g,) at these widths, each limit being worth 1."""

    def worth(cost: Mapping[str, float]) -> float:
        return sum(cost[name] / limit for name, limit in limits.items())

    prices = np.empty(len(widths))
    for i in range(len(widths)):
        upper, lower = widths.copy(), widths.copy()
        span = int(min(rounding.spans[i], max(rounding.full[i] - 1, 1)))
        upper[i] = max(int(widths[i]), 1 + span)
        lower[i] = upper[i] - span
        prices[i] = (worth(price(upper)) - worth(price(lower))) / span
    return prices


def _ladder(gains: Sequence[FloatArray], prices: FloatArray) -> Ladder:
    """Order the units after each group's first, most gain for the price first; without gain in equal
    shares.
    """
    keys = []
    for gain, unit_price in zip(gains, prices, strict=True):
        n = len(gain)
        shares = np.arange(2, n + 1) / n
        worth = gain[1:] / max(float(unit_price), _TINY)
        keys.append(np.where(gain[1:] > 0.0, -worth, shares))
    return Ladder.of(keys)
