"""A network with all that is measured once and looked at by every way to spend a budget on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from slimfast.calibration import Calibration, ErrorCurve, calibrate, error_curves
from slimfast.calibration.spilling import MEMORY
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.plans import Plan, plan_widths
from slimfast.plans.costs import CostModel
from slimfast.spectra import Spectrum, measure_spectra

Budget: TypeAlias = Literal["macs", "params"]


@dataclass(frozen=True, slots=True)
class Study:
    """A network with all that the allocations look at."""

    model: nn.Module
    graph: ChannelGraph
    spectra: Mapping[str, Spectrum]
    calibration: Calibration
    curves: Mapping[str, ErrorCurve]
    budget: Budget = "macs"

    @staticmethod
    def of(
        model: nn.Module,
        example: Any,
        batches: Any,
        samples: int,
        *,
        budget: Budget = "macs",
        include: Sequence[str] | None = None,
        moments: bool = True,
        with_curves: bool = True,
        memory: int = MEMORY,
    ) -> Study:
        """Everything measured once, without ``moments`` nothing; only groups of ``include`` are cut.
        ``with_curves`` false: without the error curves, which want a backward pass; ``memory`` bytes of
        activations at once.
        """
        graph = trace_channels(model, example, include=include)
        if not moments:
            given = Calibration({}, {}, tuple(((), dict(batch)) for batch in batches), samples)
            return Study(model, graph, {}, given, {}, budget)
        calibration = calibrate(model, graph, batches, samples=samples, memory=memory)
        curves = error_curves(model, graph, calibration, memory=memory) if with_curves else {}
        return Study(model, graph, measure_spectra(model, graph), calibration, curves, budget)

    def plan(self, spectra: Mapping[str, Spectrum], share: float, **options: Any) -> Plan:
        """The plan of these spectra within that share of the budget."""
        limit: dict[str, Any] = {self.budget: share}
        return plan_widths(self.graph, spectra, **limit, **options)

    def within(self, share: float) -> Callable[[Any], bool]:
        """Whether widths are within that share of the budget."""
        costs = CostModel(self.graph)
        limit = share * getattr(costs.cost(costs.full), self.budget)
        return lambda widths: bool(getattr(costs.cost(widths), self.budget) <= limit)


Allocation: TypeAlias = Callable[[Study, float], Plan]
