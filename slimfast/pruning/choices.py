"""The units and the repair of a network where the caller has not chosen them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from slimfast.errors import ArgumentError
from slimfast.pruning.repair import RepairKind
from slimfast.pruning.selection import DEFAULT_METHOD, Method

Repair: TypeAlias = RepairKind | Literal["auto"] | None
"""A kind of repair, None for none, or "auto": from activations where there is a calibration."""


class Given(NamedTuple):
    """What a caller may choose: by what units stay, and how the layers that read them are repaired."""

    select: Method | None
    repair: Repair
    repair_damping: float


class Chosen(NamedTuple):
    """How a network is cut; no method is the one of :func:`slimfast.select` where none is given."""

    select: Method | None
    repair: RepairKind | None
    repair_damping: float


NOT_GIVEN = Given(None, "auto", 0.0)


def chosen(given: Given, *, calibrated: bool, lossless: bool = False) -> Chosen:
    """Choose the repair where none was given: from activations where there is a calibration, which with units
    by activations makes the best network without a training; else none.

    Args:
        given: What the caller chose.
        calibrated: Whether there is a calibration.
        lossless: Whether nothing but dead units goes, so that there is nothing to repair.
    """
    repair = given.repair
    if repair == "auto":
        repair = "activations" if calibrated and not lossless else None
    return Chosen(given.select, repair, given.repair_damping)


def chosen_for_training(given: Given, kinds: Iterable[str], *, calibrated: bool) -> Chosen:
    """Choose units and repair for a network that is trained afterwards, by what was measured.

    Large units win after a training, and a repair that fits closely is a bad start: with a damping of 1
    weights move along directions of more than mean variance alone. Where heads are cut, in a transformer,
    units by activations are better (docs/evidence/index.md). Without a calibration there is no repair.

    Args:
        given: What the caller chose, which is to be nothing.
        kinds: Of the groups of the network.
        calibrated: Whether there is a calibration.
    """
    check_not_given(given)
    if not calibrated:
        return Chosen(DEFAULT_METHOD, None, 0.0)
    return Chosen("activations" if "head" in kinds else DEFAULT_METHOD, "activations", 1.0)


def check_not_given(given: Given) -> None:
    """Refuse units and repair by hand beside those that a training starts from."""
    for name, value, default in zip(given._fields, given, NOT_GIVEN, strict=True):
        if value != default:
            raise ArgumentError(
                f"prune: expected for_training, which chooses {', '.join(given._fields)}, or {name} by hand, "
                f"got both"
            )
