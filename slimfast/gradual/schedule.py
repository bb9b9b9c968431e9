"""How much is left after each round of a gradual pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from slimfast.errors import ArgumentError, did_you_mean

Schedule: TypeAlias = Literal["geometric", "linear", "cubic"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def ways_done(schedule: Schedule | Sequence[float], rounds: int) -> tuple[float, ...]:
    """Say how far from whole to its end a geometric, linear or cubic pruning is after each round.

    Args:
        schedule: ``"geometric"`` takes the same share of what is left in every round, ``"linear"`` the same
            amount, ``"cubic"`` most in the first ones (Zhu and Gupta, arXiv 1710.01878); or a number for each
            round, rising to 1.
        rounds: How many.

    Returns:
        A number in (0, 1] for each round, the last one 1: 0 is whole, 1 the end.

    Raises:
        ValueError: For another schedule, and for less than one round.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError(f"rounds: expected an integer >= 1, got {rounds!r}")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ArgumentError(
                f"rounds: expected schedule {', '.join(SCHEDULES)} or a number for each round, got "
                f"{schedule!r}{did_you_mean(schedule, SCHEDULES)}"
            )
        parts = [done / rounds for done in range(1, rounds + 1)]
        return tuple(1.0 - (1.0 - part) ** 3 for part in parts) if schedule == "cubic" else tuple(parts)
    ways = tuple(float(way) for way in schedule)
    rising = all(before < after for before, after in zip((0.0, *ways), ways, strict=False))
    if len(ways) != rounds or not rising or ways[-1] != 1.0:
        raise ArgumentError(
            f"rounds: expected a schedule of {rounds} rising numbers in (0, 1], the last one 1, got {ways}"
        )
    return ways


def left_after(way: float, schedule: Schedule | Sequence[float], whole: float, end: float) -> float:
    """Compute what is left of ``whole`` a part of the ``way`` to the ``end``."""
    if schedule == "geometric":
        return float(whole * (end / whole) ** way)
    return whole + (end - whole) * way
