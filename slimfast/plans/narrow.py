"""Wide layers of which a plan keeps next to nothing: a warning that names them, and the floor there is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from slimfast.plans.plan_data import GroupPlan

# A layer of so many units is wide, and fewer than one in so many of them are next to nothing.
_WIDE = 256
_FEW = 32


def warn_of_few(groups: Sequence[GroupPlan]) -> None:
    """Warn in one line where few units explain, by error curves, what is read of a wide layer.

    A few samples that are not like others do that, or too few samples.
    """
    few = [g for g in groups if g.chosen == "gain" and g.n >= _WIDE and g.width * _FEW < g.n]
    if few:
        least = min(few, key=lambda group: group.width / group.n)
        others = f", and {len(few) - 1} more groups as few" if len(few) > 1 else ""
        warnings.warn(
            f"plan: {least.name} keeps {least.width} of {least.n} units{others}: hardly any explain what the "
            f"calibration saw; calibrate with more samples, or set a floor (min_width={least.n // 16})",
            UserWarning,
            stacklevel=4,
        )
