"""Comparing what a network and its thin copy return in training mode, without computing anything."""

from __future__ import annotations

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, UnsupportedGraph
from slimfast.graph.recording.forward import ForwardFailed, Recording, TensorMode, record_at
from slimfast.graph.recording.network import Network


def compare_training(network: Network, thin: Network, inputs: Arguments) -> str | None:
    """Compare the shapes of what both networks return in training mode.

    Eval mode shows nothing of a branch that is for training only: a width read there, a head returned there.
    Both forwards are recorded on tensors without data.

    Args:
        network: The original.
        thin: What it was cut to.
        inputs: What both are called with.

    Returns:
        Why nothing was compared, where the original's training forward cannot be recorded; else None.

    Raises:
        SlimfastError: The thin network's training forward fails though the original's does not, or returns
            something of another shape.
    """
    modes: tuple[TensorMode, ...] = ("meta", "fake")
    reason = ""
    for mode in modes:
        try:
            wide = _record(network, inputs, mode)
        except (ForwardFailed, UnsupportedGraph) as failure:
            reason = str(failure)
            continue
        _compare(wide, thin, inputs, mode)
        return None
    return reason


def _record(network: Network, inputs: Arguments, mode: TensorMode) -> Recording:
    return record_at(network, *inputs, mode, training=list(network.modules))


def _compare(wide: Recording, thin: Network, inputs: Arguments, mode: TensorMode) -> None:
    """Record the thin network and compare what it returns with what the original returned."""
    advice = "leave the groups of those layers whole (exclude=...)"
    try:
        narrow = _record(thin, inputs, mode)
    except ForwardFailed as failure:
        raise SlimfastError(
            f"verify: in training mode, in which the original runs, the thin network's {failure}; {advice}"
        ) from failure.__cause__
    expected, got = ([ref.shape for ref in recording.outputs] for recording in (wide, narrow))
    if expected != got:
        raise SlimfastError(
            f"verify: in training mode expected outputs of shapes {expected}, got {got}; {advice}"
        )
