"""The trial cut: every group is cut once on tensors without data, to learn which Python attributes must
follow, and which groups cannot be cut or not on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph, Frozen
from slimfast.graph.recording.attributes import Key
from slimfast.graph.recording.forward import Recording, record
from slimfast.graph.recording.network import Network
from slimfast.graph.trial.search import Search
from slimfast.graph.trial.without_trial import certain_attributes


def settle(network: Network, graph: ChannelGraph, recording: Recording | None = None) -> ChannelGraph:
    """The graph after a trial cut: what it holds runs when any of its groups is cut in any way.

    It gets its attributes. Groups that cannot be cut join the frozen axes with their reason; groups whose
    widths one attribute holds are joined into one; groups whose width changes a factor of the network become
    inexact. ``recording`` is the one that ``graph`` was made of, recorded again where it is not at hand.

    Where the recording shows that there is nothing to find, nothing is cut.
    """
    recording = recording or record(network, *graph.inputs.example())
    certain = certain_attributes(graph, network.modules, recording)
    if certain is not None:
        return replace(graph, attributes=_in_order(certain))
    search = Search(network, graph, recording)
    search.run()
    frozen = dict.fromkeys(graph.frozen)
    for group in graph:
        if group.name in search.uncuttable:
            for member in group.members:
                if member.role != "follower":
                    module, reason = search.uncuttable[group.name]
                    frozen[Frozen(member.tensor, member.dim, reason, module)] = None
    settled = search.cut.graph
    return replace(
        settled,
        groups=tuple(replace(g, inexact=g.inexact or search.inexact.get(g.name)) for g in settled),
        frozen=tuple(frozen),
        attributes=_in_order(search.attributes),
    )


def _in_order(attributes: Mapping[Key, Axis]) -> tuple[Attribute, ...]:
    found = sorted(attributes.items(), key=lambda item: (item[0][:2], item[0][2] or 0))
    return tuple(Attribute(*key, axis) for key, axis in found)
