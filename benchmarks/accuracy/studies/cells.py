"""Cells of the accuracy tables: means over seeds, with their deviation, and sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def mean_of(values: Sequence[float]) -> str:
    """Write the mean, and the deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the test accuracy of rows that differ in their seed, and the parameters and MACs of one."""
    mean, *spread = mean_of([100 * row["test"] for row in rows]).partition(" ±")
    return [f"{mean} %{''.join(spread)}", f"{rows[0]['params']:,}", f"{rows[0]['macs']:,}"]
