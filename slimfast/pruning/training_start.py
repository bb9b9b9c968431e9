"""The units and the repair that a training starts best from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from slimfast.errors import ArgumentError
from slimfast.pruning.repair import RepairKind
from slimfast.pruning.selection import DEFAULT_METHOD, Method


class TrainingStart(NamedTuple):
    """The arguments of :func:`slimfast.prune_channels` that a training starts from."""

    select: Method
    repair: RepairKind | None
    repair_damping: float


NOT_CHOSEN = TrainingStart(DEFAULT_METHOD, None, 0.0)


def training_start(kinds: Iterable[str], *, calibrated: bool) -> TrainingStart:
    """Choose units and repair for a network that is trained afterwards, by what was measured.

    Large units win after a training, and a repair that fits closely is a bad start: with a damping of 1
    weights move along directions of more than mean variance alone. Where heads are cut, in a transformer,
    units by activations are better (docs/evidence/index.md). Without a calibration there is no repair.

    Args:
        kinds: Of the groups of the network.
        calibrated: Whether there is a calibration.
    """
    if not calibrated:
        return NOT_CHOSEN
    return TrainingStart("activations" if "head" in kinds else DEFAULT_METHOD, "activations", 1.0)


def check_not_chosen(given: TrainingStart) -> None:
    """Refuse units and repair by hand beside those that a training starts from."""
    for name, value, default in zip(given._fields, given, NOT_CHOSEN, strict=True):
        if value != default:
            raise ArgumentError(
                f"prune: expected for_training, which chooses {', '.join(given._fields)}, or {name} by hand, "
                f"got both"
            )
