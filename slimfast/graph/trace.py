"""Trace a model with an example of its arguments into its channel graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from slimfast.arrays import Arguments
from slimfast.graph.channel_graph import ChannelGraph, Frozen
from slimfast.graph.cutting.held_widths import is_rank
from slimfast.graph.propagation.follow import propagate
from slimfast.graph.propagation.grouping import Grouping
from slimfast.graph.propagation.size_dependence import freeze_size_dependent
from slimfast.graph.propagation.weight_origins import WeightOrigins
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.inputs import InputSpec, arguments
from slimfast.graph.recording.module_copies import collector_paused
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.number_origins import NumbersUpset
from slimfast.graph.recording.output_places import Outputs, as_outputs, check_outputs
from slimfast.graph.recording.shared_functions import refusing_hooks_that_write
from slimfast.graph.recording.unfit import refuse_unfit
from slimfast.graph.recording.unreached import note_of_unreached
from slimfast.graph.trial import trial_cut
from slimfast.graph.trial.rewrite import GroupRewrite
from slimfast.wrappers import unwrapped


@collector_paused()
def trace_channels(
    model: nn.Module,
    example: Any,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    settle: bool = True,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
) -> ChannelGraph:
    """Find the channel groups of ``model`` by running it once on tensors without data.

    Args:
        model: The network; one in a usual wrapper (``DistributedDataParallel``, compiled, averaged) is taken
            out of it.
        example: A tensor, a tuple or a dict of the model's arguments, or an object that holds tensors.
        include: Names or globs of groups, of their kinds (``head``), and of the layers or tensors that
            compute their units (``layer3.*``): only groups that one of them means are returned, and what the
            others would have changed stays as it is.
        exclude: Likewise: groups that one of them means are not returned.
        settle: Cut every group once on tensors without data, find the Python attributes that must follow, and
            leave out what cannot be cut; without it the groups are those that the recorded operations allow.
        outputs: Which outputs are the interface and stay as they are, by name (``"logits"``, ``"0.boxes"``,
            globs) or number; what else is returned may get narrower. By default all of them stay.
        also: Examples of other calls (other arguments, that use layers which ``example`` leaves out): what
            they couple is coupled, in training mode too, and they are compared when a cut is verified.

    Returns:
        The graph: a sequence of the groups, which also says what was left alone and why (``frozen``).

    Raises:
        UnsupportedGraph: When the forward fails, naming the module, for TorchScript, and for weights that are
            quantised or sharded.
        ValueError: For a name that means no group.
        TypeError: For an example that is not made of tensors and plain values, and for what is no module.

    Example:
        graph = slimfast.trace_channels(model, torch.randn(1, 3, 224, 224), exclude=["layer4.*"])
        widths = {group.name: group.n for group in graph}
    """
    model = unwrapped(model)
    network = Network.of(model)
    refuse_unfit(network)
    others = list(also)
    calls = _Calls(InputSpec.of(example), arguments(example), as_outputs(outputs), tuple(others))
    selected = (include, exclude)
    try:
        return _traced(network, calls, selected, settle=settle, trace_numbers=True)
    except NumbersUpset:
        return _traced(network, calls, selected, settle=settle, trace_numbers=False)


@dataclass(frozen=True, slots=True)
class _Calls:
    """What a network is called with, and which of its outputs stay as they are.

    ``inputs`` describes what is ``given``; ``others`` are the examples of other calls.
    """

    inputs: InputSpec
    given: Arguments
    outputs: Outputs | None
    others: tuple[Any, ...]


def _traced(
    network: Network,
    calls: _Calls,
    selected: tuple[Sequence[str] | None, Sequence[str] | None],
    *,
    settle: bool,
    trace_numbers: bool,
) -> ChannelGraph:
    """Record a network, follow its labels, read the graph off them, and settle it."""
    given = calls.given
    with refusing_hooks_that_write(network):
        recording = record(network, *given, trace_numbers=trace_numbers)
    check_outputs(recording.places, calls.outputs)
    also = [(record(network, *inputs), inputs) for inputs in map(arguments, calls.others)]
    flow = propagate(network, recording, *given, calls.outputs, also)
    freeze_size_dependent(network, flow, recording, given, calls.outputs, also)
    grouping = Grouping(flow.labels, *selected)
    origins = WeightOrigins(network, recording, flow, [other for other, _ in also])
    graph = ChannelGraph(
        groups=grouping.groups(),
        axes=grouping.axes(),
        parameters=frozenset(name for name, t in network.tensors.items() if isinstance(t, nn.Parameter)),
        operations=tuple(map(grouping.operation, flow.calls)),
        frozen=grouping.frozen(),
        inputs=calls.inputs,
        tied=network.tied,
        itemsize={name: tensor.element_size() for name, tensor in network.tensors.items()},
        outputs=calls.outputs,
        also=tuple(map(InputSpec.of, calls.others)),
        notes=(*flow.labels.notes, *note_of_unreached(network)),
        decisions=recording.decisions,
        computed=origins.computed,
        behind=origins.behind,
        unseen=flow.labels.unseen,
        training_failure=flow.labels.training_failure,
    )
    if not settle:
        return graph
    return _without_ranks(trial_cut.settle(network, graph, (recording, given), also))


def _without_ranks(graph: ChannelGraph) -> ChannelGraph:
    """Leave whole the ranks that a configuration has one number for though several layers have one each.

    Adapters are saved and loaded by that number (``r`` of peft's configurations).
    """
    reasons: dict[str, str] = {}
    for held in graph.undecided:
        if is_rank(held.name):
            reason = f"{held.name} = {held.value} is the rank of several layers at once"
            names = (name for axis in held.axes for name in axis.groups)
            reasons |= {name: reason for name in names if name not in reasons}
    if not reasons:
        return graph
    rewrite = GroupRewrite(dict.fromkeys(reasons))
    frozen = [
        Frozen(member.tensor, member.dim, reasons[group.name], "")
        for group in graph
        for member in group.members
        if group.name in reasons and member.role != "follower"
    ]
    attributes = (replace(a, axis=rewrite.axis(a.axis)) for a in graph.attributes or ())
    undecided = (replace(held, axes=tuple(map(rewrite.axis, held.axes))) for held in graph.undecided)
    return replace(
        rewrite.graph(graph),
        attributes=tuple(attribute for attribute in attributes if attribute.axis.places),
        undecided=tuple(held for held in undecided if any(axis.places for axis in held.axes)),
        frozen=(*graph.frozen, *frozen),
    )
