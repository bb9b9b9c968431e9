"""The ``paired`` fixture of the op benchmarks (``make bench``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from benchmarks.timing import OURS, Run, time_in_turn

PAIRED_SECONDS = 1.0


@pytest.fixture
def paired(benchmark: Any) -> Callable[[Mapping[str, Run | str]], None]:
    """Time our variant by pytest-benchmark, and all of them in turn; ratios go into ``extra_info``."""

    def run(variants: Mapping[str, Run | str]) -> None:
        runs = {name: variant for name, variant in variants.items() if not isinstance(variant, str)}
        benchmark(runs[OURS])
        timings = time_in_turn(runs, seconds=PAIRED_SECONDS)
        for name, timing in timings.items():
            if name != OURS:
                benchmark.extra_info[f"times {name}"] = timing.median / timings[OURS].median

    return run
