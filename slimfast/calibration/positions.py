"""Which positions of what a layer reads its least squares see, and what it reads there."""

from __future__ import annotations

import torch
from torch import Tensor

from slimfast.calibration.consumers import Consumer
from slimfast.calibration.massive import shrinking

# Positions of each layer's input that the least squares see: at least so many, and so many per variable.
POSITIONS = 8192
POSITIONS_PER_VARIABLE = 4


def wanted(consumer: Consumer) -> int:
    """Count the positions of a layer's input that its least squares see, where there are as many."""
    return max(POSITIONS, POSITIONS_PER_VARIABLE * consumer.length)


class Picks:
    """The positions that are seen, of so many how many: drawn once for all layers that ask for the same."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Tensor | None] = {}

    def within(self, total: int, count: int, start: int, size: int) -> tuple[int, Tensor | None]:
        """Find those of ``size`` positions from ``start`` on that are seen, counted from ``start``, None for
        all of them; and how many come before.
        """
        if (total, count) not in self._found:
            self._found[total, count] = picked(total, count)
        picks = self._found[total, count]
        if picks is None:
            return start, None
        first, last = torch.searchsorted(picks, torch.tensor([start, start + size], device="cpu")).tolist()
        return first, picks[first:last] - start


def picked(total: int, count: int) -> Tensor | None:
    """Pick ``count`` of so many positions, in order and always the same; None for all of them."""
    if total <= count:
        return None
    generator = torch.Generator().manual_seed(total)
    return torch.randperm(total, generator=generator, device="cpu")[:count].sort().values


def rows_at(
    consumer: Consumer, x: Tensor, index: Tensor | None, samples: int, counting: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Take what a layer reads at these positions, (L, s), in memory of its own; and the factors (s,) that
    have brought massive tokens down to their bound there, None where there are none.
    """
    rows = consumer.columns(x, index)
    if rows.untyped_storage()._cdata == x.untyped_storage()._cdata:
        rows = rows.clone()
    factors = shrinking(consumer, x, samples, counting)
    if factors is not None:
        factors = factors.reshape(-1) if index is None else factors.reshape(-1)[index]
        rows = rows * factors.to(rows)
    return rows, factors
