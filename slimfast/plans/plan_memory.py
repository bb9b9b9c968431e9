"""What a plan knows of the peak memory of a forward: predicted, and measured on the thin network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slimfast.arrays import IntArray
from slimfast.memory.measuring import bytes_text
from slimfast.memory.table import MemoryTable, PricedMemory
from slimfast.storage.documents import Fields

_LONGEST = float(2**63)


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """The peak memory of one forward, in bytes: weights, inputs and live activations.

    Attributes:
        before: What the whole network takes, as it was measured.
        predicted: What follows from the widths of the plan, corrected by what was measured.
        measured: What the thin network took; None where it was not measured.
        where: The operation at the predicted peak, the batch and the device.

    Example:
        plan.peak_memory.measured / plan.peak_memory.before
    """

    before: float
    predicted: float
    measured: float | None
    where: str

    @classmethod
    def of(cls, table: MemoryTable, priced: PricedMemory, widths: IntArray) -> PlanMemory:
        """Make it of what a table predicts of widths (g,)."""
        operation, module = priced.where(widths)
        at = f"at {operation} in {module or 'the model itself'}"
        where = f"{at}, batch {table.whole.batch}, on {table.whole.device}"
        return cls(priced.whole, priced.price(widths), None, where)

    def __str__(self) -> str:
        measured = "not measured here" if self.measured is None else f"measured {self._told(self.measured)}"
        predicted = f"predicted {self._told(self.predicted)}"
        return f"{predicted}, {measured}, of {bytes_text(self.before)}; {self.where}"

    def _told(self, count: float) -> str:
        return f"{bytes_text(count)} ({count / self.before:.4f})"

    def to_json(self) -> dict[str, Any]:
        """Write it as plain data."""
        return {
            "before": self.before,
            "predicted": self.predicted,
            "measured": self.measured,
            "where": self.where,
        }


def memory_from_json(fields: Fields) -> PlanMemory | None:
    """Read the peak memory of a plan, or null."""
    if fields.is_null("peak_memory"):
        return None
    inner = fields.object("peak_memory")
    found = PlanMemory(
        before=inner.number("before", 1.0, _LONGEST),
        predicted=inner.number("predicted", 0.0, _LONGEST),
        measured=None if inner.is_null("measured") else inner.number("measured", 0.0, _LONGEST),
        where=inner.string("where"),
    )
    inner.done()
    return found
