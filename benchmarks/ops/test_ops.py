"""One row of every op as a pytest-benchmark test: ``make bench``, to compare commits on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import pytest

from benchmarks.roofline import Roofline
from benchmarks.run import OPS
from benchmarks.timing import OURS, Row, Run

# The bound is not asked for here, so any rates will do.
UNIT_RATES = Roofline({"float32": 1.0, "float64": 1.0, "bfloat16": 1.0}, 1.0)


ROWS = [
    pytest.param(module, row, id=f"{module.OP}: {row.name}")
    for module in OPS.values()
    for row in module.rows("cpu")
    if row.quick
]


@pytest.mark.parametrize(("module", "row"), ROWS)
def test_op(module: ModuleType, row: Row, paired: Callable[[Mapping[str, Run | str]], None]) -> None:
    case = module.case(row, "cpu", UNIT_RATES)
    ours = case.variants[OURS]
    assert callable(ours)
    assert case.error(ours()) <= case.limit
    paired(case.variants)
