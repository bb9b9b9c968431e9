"""What came of a repair, as data that stays with the thin network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import nn

from slimfast.errors import SlimfastError

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
    """What a repair did: the ``fits`` by weight, the batch ``norms`` measured again, and the weights
    that were ``left`` as they were cut, with the reason.
    """

    kind: RepairKind
    fits: Mapping[str, Fit] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def attach_report(thin: nn.Module, report: RepairReport) -> None:
    """Keep the report with the thin network."""
    object.__setattr__(thin, _ATTRIBUTE, report)


def repair_report(thin: nn.Module) -> RepairReport:
    """What was repaired in a network of ``prune_channels``; :class:`SlimfastError` where nothing was."""
    report = vars(thin).get(_ATTRIBUTE)
    if not isinstance(report, RepairReport):
        raise SlimfastError(f"{type(thin).__name__}: no repair was made")
    return report
