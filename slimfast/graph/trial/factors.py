"""Numbers in a network's arithmetic that change with its widths, as two recordings show them."""

from __future__ import annotations

from collections.abc import Sequence

from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import aligned
from slimfast.graph.recording.dispatch_mode import Call

# Numbers that enter the arithmetic of an operation, by their names in ATen's schemas.
_FACTORS = ("other", "alpha", "beta", "exponent", "value", "fill_value", "scale")


def changed_factors(cut: Cut, wide: Sequence[Call], thin: Sequence[Call]) -> dict[int, tuple[float, float]]:
    """Operation -> the first number of its arithmetic that is another in the thin recording: (before,
    after).
    """
    found: dict[int, tuple[float, float]] = {}
    for i, call in aligned(cut, thin):
        for name, old in wide[i].arguments.items():
            new = call.arguments.get(name)
            counts = isinstance(old, float) or (type(old) is int and name in _FACTORS)
            if counts and isinstance(new, (int, float)) and new != old:
                found.setdefault(i, (float(old), float(new)))
    return found
