"""Hold what is known of the tensors and the operations that labels are followed through."""

from __future__ import annotations

from dataclasses import dataclass

from slimfast.graph.propagation.axis_labels import Axes, AxisLabels
from slimfast.graph.recording.calls import Call


@dataclass(frozen=True, slots=True, eq=False)
class TracedTensor:
    """A tensor with the labels of its axes.

    ``data``: it depends on the network's input or on chance. ``sources``: the parameters that a tensor which
    does not is made of, or which it holds elements of.
    """

    axes: Axes
    data: bool
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class TracedCall:
    """A call with what its rule found: the axes of its outputs, its multiply-adds as a product of numbers and
    lengths, and the integers among its arguments that are the length of an axis."""

    call: Call
    outputs: tuple[Axes, ...]
    macs: tuple[int | AxisLabels, ...]
    constants: tuple[tuple[str, int, AxisLabels], ...]
