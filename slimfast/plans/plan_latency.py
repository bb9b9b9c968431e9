"""What a plan knows of the time of a forward: predicted by a table, and measured on the thin network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slimfast.latency.table import LatencyTable
from slimfast.latency.timing import seconds_text
from slimfast.storage.documents import Fields

_LONGEST = 1e9


@dataclass(frozen=True, slots=True)
class PlanLatency:
    """The time of a forward, in seconds.

    Attributes:
        before: What the whole network takes: measured beside the thin one where that was, else as in the
            table.
        predicted: What the table says of the widths of the plan, corrected by what was measured.
        measured: What the thin network took; None where it was not measured.
        where: The runtime, the threads, the batch and the machine.

    Example:
        plan.latency.measured / plan.latency.before
    """

    before: float
    predicted: float
    measured: float | None
    where: str

    @classmethod
    def of(cls, table: LatencyTable, before: float, predicted: float) -> PlanLatency:
        """Make it of what a table predicts."""
        return cls(before, predicted, None, table.where())

    def __str__(self) -> str:
        measured = "not measured here" if self.measured is None else f"measured {self._told(self.measured)}"
        predicted = f"predicted {self._told(self.predicted)}"
        return f"{predicted}, {measured}, of {seconds_text(self.before)}; {self.where}"

    def _told(self, seconds: float) -> str:
        return f"{seconds_text(seconds)} ({seconds / self.before:.4f})"

    def to_json(self) -> dict[str, Any]:
        """Write it as plain data."""
        return {
            "before": self.before,
            "predicted": self.predicted,
            "measured": self.measured,
            "where": self.where,
        }


def latency_from_json(fields: Fields) -> PlanLatency | None:
    """Read the time of a plan, or null."""
    if fields.is_null("latency"):
        return None
    inner = fields.object("latency")
    found = PlanLatency(
        before=inner.number("before", 1e-12, _LONGEST),
        predicted=inner.number("predicted", 0.0, _LONGEST),
        measured=None if inner.is_null("measured") else inner.number("measured", 0.0, _LONGEST),
        where=inner.string("where"),
    )
    inner.done()
    return found
