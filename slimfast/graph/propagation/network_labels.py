"""Give labels to a network's parameters and buffers, which all of its forwards share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import nn

from slimfast.graph.channel_graph import Role
from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.label_matrices import Labels
from slimfast.graph.propagation.partition import Partition
from slimfast.graph.propagation.reasons import Cause, Causes, Reason
from slimfast.graph.propagation.traced import TracedTensor
from slimfast.graph.recording.network import Network


class NetworkLabels:
    """The labels of every axis of every parameter and buffer, with what is known of them so far.

    ``roles``: what the (tensor, dim) pairs that a forward computes with were first used as, in that order.
    ``notes``: what was not looked at, one line each. ``unseen``: the parameters that no forward uses, each
    with the module around it that has others too; ``training_failure``: why that in training mode fails.
    """

    def __init__(self, network: Network) -> None:
        self.modules = network.modules
        self.tied = network.tied
        self.partition = Partition()
        self.causes = Causes()
        self.roles: dict[tuple[str, int], Role] = {}
        self.notes: list[str] = []
        self.unseen: dict[str, str] = {}
        self.training_failure: str | None = None
        self.tensors = {
            # a buffer (the frequencies of rotary positions) computes no unit: it has no spectrum to rank
            name: TracedTensor(
                self.fresh(tensor.shape), False, frozenset({name} if isinstance(tensor, nn.Parameter) else ())
            )
            for name, tensor in network.tensors.items()
        }

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Make axes with new labels; those of length 1 are fixed."""
        return [AxisLabels(self.partition.fresh(n)[:, None]) if n > 1 else FIXED.of_length(n) for n in shape]

    def freeze(self, axes: Iterable[AxisLabels], cause: Cause) -> None:
        """Forbid the removal of any index of these axes."""
        for axis in axes:
            if not axis.fixed:
                self.partition.freeze_classes(axis.labels, cause.number)

    def freeze_classes(self, classes: Labels, cause: Cause) -> None:
        """Forbid the removal of these units."""
        self.partition.freeze_classes(classes, cause.number)

    def leave_alone(self, names: Collection[str], reason: Reason, detail: str = "") -> None:
        """Freeze whole parameters that no operation uses, and list them among what is left alone."""
        for name in names:
            axes = self.tensors[name].axes
            self.freeze(axes, self.causes.add(reason, module_of(name), detail=detail))
            for dim, axis in enumerate(axes):
                if not axis.fixed:
                    self.roles[name, dim] = "consumer"

    def use(self, sources: Iterable[str], axis: AxisLabels, role: Role) -> Axes:
        """Give a role to the axes of these parameters that share labels with ``axis``, and return them.

        The first use of a weight decides: an embedding that is also the classifier produces.
        """
        used: Axes = []
        if axis.fixed:
            return used
        for name in sorted(sources):
            for dim, own in enumerate(self.tensors[name].axes):
                if (name, dim) in self.roles or own.fixed:
                    continue
                if own is axis or self.partition.meet(own.labels, axis.labels):
                    self.roles[name, dim] = role
                    used.append(own)
        return used


def module_of(name: str) -> str:
    """Find the path of the module that holds a parameter."""
    return name.rpartition(".")[0]
