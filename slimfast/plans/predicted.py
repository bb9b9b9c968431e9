"""What a plan knows of the time and the peak memory of a forward: predicted, and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from slimfast.arrays import IntArray
from slimfast.latency.table import LatencyTable
from slimfast.latency.timing import seconds_text
from slimfast.memory.measuring import bytes_text
from slimfast.memory.table import MemoryTable, PricedMemory
from slimfast.storage.documents import Fields

_P = TypeVar("_P", bound="Predicted")


@dataclass(frozen=True, slots=True)
class Predicted:
    """An amount that a forward takes, of which a plan is a prediction."""

    before: float
    predicted: float
    measured: float | None
    where: str

    # Its name in a plan's file, and what the whole network may take.
    field: ClassVar[str]
    least: ClassVar[float]
    most: ClassVar[float]

    @staticmethod
    def text(amount: float, /) -> str:
        """Write an amount with its unit."""
        raise NotImplementedError

    def __str__(self) -> str:
        measured = "not measured here" if self.measured is None else f"measured {self._told(self.measured)}"
        predicted = f"predicted {self._told(self.predicted)}"
        return f"{predicted}, {measured}, of {self.text(self.before)}; {self.where}"

    def _told(self, amount: float) -> str:
        return f"{self.text(amount)} ({amount / self.before:.4f})"

    def to_json(self) -> dict[str, Any]:
        """Write it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls: type[_P], fields: Fields) -> _P | None:
        """Read that of a plan, or null."""
        if fields.is_null(cls.field):
            return None
        inner = fields.object(cls.field)
        found = cls(
            before=inner.number("before", cls.least, cls.most),
            predicted=inner.number("predicted", 0.0, cls.most),
            measured=None if inner.is_null("measured") else inner.number("measured", 0.0, cls.most),
            where=inner.string("where"),
        )
        inner.done()
        return found


@dataclass(frozen=True, slots=True)
class PlanLatency(Predicted):
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

    field, least, most = "latency", 1e-12, 1e9
    text = staticmethod(seconds_text)

    @classmethod
    def of(cls, table: LatencyTable, before: float, predicted: float) -> PlanLatency:
        """Make it of what a table predicts."""
        return cls(before, predicted, None, table.where())


@dataclass(frozen=True, slots=True)
class PlanMemory(Predicted):
    """The peak memory of one forward, in bytes: weights, inputs and live activations.

    Attributes:
        before: What the whole network takes, as it was measured.
        predicted: What follows from the widths of the plan, corrected by what was measured.
        measured: What the thin network took; None where it was not measured.
        where: The operation at the predicted peak, the batch and the device.

    Example:
        plan.peak_memory.measured / plan.peak_memory.before
    """

    field, least, most = "peak_memory", 1.0, float(2**63)
    text = staticmethod(bytes_text)

    @classmethod
    def of(cls, table: MemoryTable, priced: PricedMemory, widths: IntArray) -> PlanMemory:
        """Make it of what a table predicts of widths (g,)."""
        operation, module = priced.where(widths)
        at = f"at {operation} in {module or 'the model itself'}"
        where = f"{at}, batch {table.whole.batch}, on {table.whole.device}"
        return cls(priced.whole, priced.price(widths), None, where)
