"""Comparing what a network and its thin copy return in training mode, without computing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, UnsupportedGraph
from slimfast.graph.cutting.patches import Patch
from slimfast.graph.recording.data_copies import copied_with_data
from slimfast.graph.recording.decisions import Decision, OtherDecision
from slimfast.graph.recording.forward import (
    ForwardFailed,
    Recording,
    TensorMode,
    record,
    record_at,
)
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.output_places import Outputs, staying

_MODES: tuple[TensorMode, ...] = ("meta", "fake")


class TrainingBreaks(SlimfastError):
    """The thin network's training forward fails, or returns other shapes, where the original's does not."""


@dataclass(frozen=True, slots=True)
class TrainingForward:
    """A network's training forward, recorded: what the thin one's is compared with.

    ``mode`` and ``decisions``: on which tensors, and what it decided by values, which the thin network's is
    handed. ``shapes``: of the outputs that stay as they are.
    """

    inputs: Arguments
    mode: TensorMode
    decisions: tuple[Decision, ...]
    outputs: Outputs | None
    shapes: list[tuple[int, ...]]

    @classmethod
    def of(cls, network: Network, inputs: Arguments, outputs: Outputs | None) -> TrainingForward | str:
        """Record it, on tensors without data if that goes; or say why it cannot be."""
        for mode in _MODES:
            try:
                recording = _record(network, inputs, mode)
                break
            except (ForwardFailed, UnsupportedGraph):
                continue
        else:
            try:
                with copied_with_data(network) as copied:
                    recording = record(copied, *inputs, training=list(copied.modules))
            except UnsupportedGraph as failure:
                return str(failure)
        return cls(inputs, recording.tensor_mode, recording.decisions, outputs, _shapes(recording, outputs))

    def of_thin(self, thin: Network) -> Recording:
        """Record the thin network's on such tensors, with these decisions."""
        if self.mode != "real":
            return _record(thin, self.inputs, self.mode, self.decisions)
        with copied_with_data(thin) as copied:
            return _record(copied, self.inputs, self.mode, self.decisions)

    def reached(self, thin: nn.Module, patch: Patch) -> int | None:
        """Say after how many operations the thin network's fails with a patch; None where it does not, and
        returns the same shapes.
        """
        with _patched(thin, patch):
            try:
                recording = self.of_thin(Network.of(thin))
            except ForwardFailed as failure:
                return len(failure.calls)
            except UnsupportedGraph:
                return 0
        same = _shapes(recording, self.outputs) == self.shapes
        return None if same else len(recording.calls)


def compare_training(
    network: Network, thin: Network, inputs: Arguments, outputs: Outputs | None = None
) -> str | None:
    """Compare the shapes of what both networks return in training mode.

    Eval mode shows nothing of a branch that is for training only: a width read there, a head returned there.
    Both forwards are recorded on tensors without data; where the original's decides by values, a copy of it
    runs once with data, and the thin network's is handed its decisions.

    Args:
        network: The original.
        thin: What it was cut to.
        inputs: What both are called with.
        outputs: Which outputs stay as they are; None: all of them.

    Returns:
        Why nothing was compared, where the original's training forward cannot be recorded; else None.

    Raises:
        TrainingBreaks: The thin network's training forward fails though the original's does not, or returns
            something of another shape.
    """
    wide = TrainingForward.of(network, inputs, outputs)
    return wide if isinstance(wide, str) else _compare(wide, thin)


def _record(
    network: Network, inputs: Arguments, mode: TensorMode, decisions: Sequence[Decision] = ()
) -> Recording:
    return record_at(network, *inputs, mode, training=list(network.modules), decisions=decisions)


def _compare(wide: TrainingForward, thin: Network) -> str | None:
    """Record the thin network and compare what it returns with what the original returned; say why it cannot
    be."""
    advice = "leave the groups of those layers whole (exclude=...)"
    try:
        narrow = wide.of_thin(thin)
    except ForwardFailed as failure:
        if isinstance(failure.__cause__, OtherDecision):
            return f"{type(thin.model).__name__}: {failure}"
        raise TrainingBreaks(
            f"verify: in training mode, in which the original runs, the thin network's {failure}; {advice}"
        ) from failure.__cause__
    expected, got = wide.shapes, _shapes(narrow, wide.outputs)
    if expected != got:
        raise TrainingBreaks(
            f"verify: in training mode expected outputs of shapes {expected}, got {got}; {advice}"
        )
    return None


def _shapes(recording: Recording, outputs: Outputs | None) -> list[tuple[int, ...]]:
    """List the shapes of the outputs that stay as they are."""
    stay = staying(recording.places, outputs)
    return [ref.shape for ref, kept in zip(recording.outputs, stay, strict=True) if kept]


@contextmanager
def _patched(thin: nn.Module, patch: Patch) -> Iterator[None]:
    """Let an attribute of a module have another value meanwhile."""
    held = vars(thin.get_submodule(patch.module))
    held[patch.attribute] = patch.after
    try:
        yield
    finally:
        held[patch.attribute] = patch.before
