"""Find groups that hold at the size of the example alone, by following another size too."""

from __future__ import annotations

from collections.abc import Sequence

from slimfast.arrays import Arguments
from slimfast.errors import UnsupportedGraph
from slimfast.graph.channel_graph import ChannelGroup
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.follow import propagate
from slimfast.graph.propagation.grouping import Grouping
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.recording.forward import ForwardFailed, Recording, record
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.other_sizes import other_inputs
from slimfast.graph.recording.output_places import Outputs


def freeze_size_dependent(
    network: Network,
    flow: Propagation,
    recording: Recording,
    inputs: Arguments,
    outputs: Outputs | None,
    also: Sequence[tuple[Recording, Arguments]],
) -> None:
    """Freeze the units that belong together at the size of the example only.

    A reshape that mixes channels with positions, (B, H * W, C) to (B, C, H, W) without a transpose, joins
    channels that other sizes of the input would not join. Where an axis that was made of both is divided, the
    forward is followed at another size and batch, if the network takes one, and what is grouped otherwise
    there is left whole. What a forward decides by values is known for its own inputs alone, so that where
    ``recording`` has decisions no other size can be followed.
    """
    if not flow.divides_mixed:
        return
    other = None if recording.decisions else other_inputs(network, inputs)
    if other is None:
        why = (
            "its forward decides by values, which are not known at another size"
            if recording.decisions
            else "no other size was found that the model takes"
        )
        flow.labels.notes.append(
            f"a reshape joins channels with positions or samples, and {why}: the groups are those of this "
            f"size"
        )
        return
    try:
        again = propagate(network, record(network, *other.inputs), *other.inputs, outputs, also)
    except (ForwardFailed, UnsupportedGraph):
        return
    here, there = Grouping(flow.labels, None, None), Grouping(again.labels, None, None)
    elsewhere = {_slices(group) for group in there.groups()}
    cause = flow.labels.causes.add(Reason.SIZE)
    for group in here.groups():
        if _slices(group) not in elsewhere:
            flow.labels.freeze_classes(here.units(group.name), cause)


def _slices(group: ChannelGroup) -> frozenset[tuple[str, int, bytes]]:
    """List which unit each slice of a group's tensors belongs to."""
    return frozenset((member.tensor, member.dim, member.units.tobytes()) for member in group.members)
