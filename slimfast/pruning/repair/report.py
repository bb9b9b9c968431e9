"""What came of a repair, as data that stays with the thin network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph.recording.module_copies import named_tensors

RepairKind: TypeAlias = Literal["weights", "activations"]

_ATTRIBUTE = "_slimfast_repair"


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A repaired layer: its ``damping``, infinite where the plain cut was best, and on held-out positions the
    squared error of its output as a share of the output's variance, ``before`` and ``after`` the repair; None
    where no data was seen.
    """

    damping: float
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RepairReport:
    """What a repair did, and what it did not.

    Attributes:
        kind: From ``"weights"`` or from ``"activations"``.
        fits: The repaired layers, by weight.
        norms: The batch norms that were measured again.
        left: The weights that were left as they were cut, with the reason.

    Example:
        report = slimfast.repair_report(thin)
        for weight, fit in report.fits.items():
            print(weight, fit.damping, fit.before, fit.after)
    """

    kind: RepairKind
    fits: Mapping[str, Fit] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def tensors(self, thin: nn.Module) -> tuple[str, ...]:
        """Name the tensors of the repaired layers and norms of ``thin``."""
        layers = {weight.rpartition(".")[0] for weight in self.fits} | set(self.norms)
        starts = tuple(f"{path}." if path else "" for path in sorted(layers))
        return tuple(name for name in named_tensors(thin) if name.startswith(starts))


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """What a run that was stopped has repaired.

    Attributes:
        fits: The layers, in the order in which they were repaired; the thin network has their weights.
        note: Called with each further layer and its fit, when its weights are written.
    """

    fits: Mapping[str, Fit]
    note: Callable[[str, Fit], None]


def attach_report(thin: nn.Module, report: RepairReport) -> None:
    """Keep the report with the thin network."""
    object.__setattr__(thin, _ATTRIBUTE, report)


def repair_report(thin: nn.Module) -> RepairReport:
    """Tell what was repaired in a network of ``prune_channels``.

    Args:
        thin: The network.

    Returns:
        The report.

    Raises:
        SlimfastError: Where no repair was made.

    Example:
        thin = slimfast.prune_channels(model, plan, repair="weights")
        print(slimfast.repair_report(thin).left)
    """
    report = vars(thin).get(_ATTRIBUTE)
    if not isinstance(report, RepairReport):
        raise SlimfastError(f"{type(thin).__name__}: no repair was made")
    return report
