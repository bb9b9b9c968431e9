"""What came of a repair, as data that stays with the thin network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import nn

from slimfast.errors import SlimfastError

RepairKind: TypeAlias = Literal["weights", "activations", "moments"]

_ATTRIBUTE = "_slimfast_repair"


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A repaired layer: its ``damping``, infinite where the plain cut was best, and on held-out positions the
    squared error of its output as a share of the output's variance, ``before`` and ``after`` the repair; None
    where no data was seen. From moments nothing is held out: ``before`` is of all positions, and ``after``
    what generalised cross-validation tells.
    """

    damping: float
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RepairReport:
    """What a repair did, and what it did not.

    Attributes:
        kind: From ``"weights"``, from ``"activations"`` or from their ``"moments"``.
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


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """What a run that was stopped has repaired.

    Attributes:
        fits: The layers, in the order in which they were repaired; the thin network has their weights.
        note: Called with each further layer and its fit, when its weights are written.
    """

    fits: Mapping[str, Fit]
    note: Callable[[str, Fit], None]


def repaired_tensors(weights: Iterable[str], norms: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Name those tensors, of these, that belong to layers of repaired weights and to norms measured again."""
    layers = {weight.rpartition(".")[0] for weight in weights} | set(norms)
    starts = tuple(f"{path}." if path else "" for path in sorted(layers))
    return tuple(name for name in names if name.startswith(starts))


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
    report = found_report(thin)
    if report is None:
        raise SlimfastError(f"{type(thin).__name__}: no repair was made")
    return report


def found_report(thin: nn.Module) -> RepairReport | None:
    """Look up what was repaired in a network; None where nothing was."""
    report = vars(thin).get(_ATTRIBUTE)
    return report if isinstance(report, RepairReport) else None
