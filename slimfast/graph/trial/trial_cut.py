"""The trial cut: every group is cut once on tensors without data, to learn which Python attributes must
follow, and which groups cannot be cut or not on their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph, Frozen, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.held_widths import Run, decide, follow_held_widths
from slimfast.graph.cutting.prediction import aligned
from slimfast.graph.recording.attributes import AttributeKey, stack_of
from slimfast.graph.recording.forward import Call
from slimfast.graph.recording.network import Network
from slimfast.graph.trial.beside import first_trial
from slimfast.graph.trial.candidates import Layout, named_alike
from slimfast.graph.trial.origins import find_origins
from slimfast.graph.trial.runner import Trial, TrialRunner
from slimfast.graph.trial.search import AttributeSearch, Settlement
from slimfast.graph.trial.trial_widths import trial_keeps
from slimfast.graph.trial.without_trial import attributes_without_trial

# Numbers that enter the arithmetic of an operation, by their names in ATen's schemas.
_FACTORS = ("other", "alpha", "beta", "exponent", "value", "fill_value", "scale")


def settle(network: Network, graph: ChannelGraph, run: Run, also: Sequence[Run] = ()) -> ChannelGraph:
    """Cut every group once, and return a graph that runs when any of its groups is cut in any way.

    It gets its attributes. Groups that cannot be cut join the frozen axes with their reason; groups whose
    widths one attribute holds are joined into one; groups whose width changes a factor of the network become
    inexact. ``run`` is the recording that ``graph`` was made of and what the network was called with,
    ``also`` those of other calls.

    Where the recording shows that there is nothing to find, nothing is cut. Raises ``NumbersUpset`` where
    the network does not run as it was recorded with traced integers.
    """
    recording, arguments = run
    certain = attributes_without_trial(graph, network.modules, recording)
    if certain is not None:
        return follow_held_widths(network, replace(graph, attributes=_in_order(certain)), [run, *also])
    runner = TrialRunner(network, recording, arguments)
    layout = Layout.of(network.modules, graph)
    origins = find_origins(graph, recording)
    attributes = {**named_alike(origins.graph, network.modules), **origins.attributes}
    trial = Trial(Cut(origins.graph, trial_keeps(origins.graph)), attributes)
    held, undecided = decide(network, origins.graph, _in_order(attributes), origins.seen)
    beside = {} if also else {(a.module, a.name, a.index): a.axis for a in held}
    first, unread = first_trial(runner, trial, beside, recording.calls)
    settlement = AttributeSearch(runner, layout, origins, trial).run(first)
    inexact = inexact_groups(settlement, recording.calls, runner, layout)
    settled = settlement.trial.cut.graph
    found = replace(
        settled,
        groups=tuple(replace(group, inexact=group.inexact or inexact.get(group.name)) for group in settled),
        frozen=tuple(dict.fromkeys([*graph.frozen, *_given_up(graph, settlement.uncuttable)])),
        attributes=_in_order(settlement.trial.attributes),
    )
    if (
        unread
        and not also
        and settled is origins.graph
        and settlement.trial.attributes.keys() == attributes.keys()
    ):
        return replace(found, attributes=(*(found.attributes or ()), *held), undecided=undecided)
    return follow_held_widths(network, found, [run, *also], origins.seen)


def _given_up(graph: ChannelGraph, uncuttable: Mapping[str, tuple[str, str]]) -> Iterator[Frozen]:
    for group in graph:
        if group.name in uncuttable:
            module, reason = uncuttable[group.name]
            for member in group.members:
                if member.role != "follower":
                    yield Frozen(member.tensor, member.dim, reason, module)


def _in_order(attributes: Mapping[AttributeKey, Axis]) -> tuple[Attribute, ...]:
    in_order = sorted(attributes.items(), key=lambda item: (item[0][:2], item[0][2] or 0))
    return tuple(Attribute(*key, axis) for key, axis in in_order)


def inexact_groups(
    settlement: Settlement, wide: Sequence[Call], runner: TrialRunner, layout: Layout
) -> dict[str, str]:
    """Find groups whose width changes a number in the arithmetic, so that removing their units is not masking
    them; each with the reason. ``wide``: the calls before the cut.
    """
    trial, inexact = settlement.trial, dict[str, str]()
    alone = dict[str, set[int]]()
    if not _changed_factors(trial.cut, wide, settlement.calls):
        return inexact
    operations = trial.cut.graph.operations
    cut_groups = [group for group in trial.cut.graph if group.name in trial.cut.keeps]
    for kind in sorted({group.kind for group in cut_groups}):
        some = trial.only({group.name for group in cut_groups if group.kind == kind})
        for i, (before, after) in _changed_factors(some.cut, wide, runner.run(some).calls).items():
            path, stack = operations[i].module, stack_of(operations[i].module)
            own = [*_outputs(operations[i]), *(a for key, a in some.attributes.items() if key[0] in stack)]
            # a tensor that Python made of the number is an operation without any of the axes
            beside = [operations[j] for j in layout.inside[path] if operations[j].module == path]
            around = [axis for operation in beside for axis in _outputs(operation)]
            change = f"{before:g} to {after:g} in {operations[i].name} at {path or 'the model itself'}"
            near = dict.fromkeys([*some.groups_in(own), *some.groups_in(around)])
            # the heads of scores stand beside a number that the length of what was summed over makes
            for name in near if len(near) > 1 else ():
                if name not in alone:
                    one = trial.only({name})
                    alone[name] = set(_changed_factors(one.cut, wide, runner.run(one).calls))
            sure = [name for name in near if i in alone.get(name, ())]
            for name in sure or some.groups_in(own) or some.groups_in(around):
                inexact.setdefault(name, f"its width changes a factor: {change}")
    return inexact


def _outputs(operation: Operation) -> list[Axis]:
    return [axis for axes in operation.outputs for axis in axes]


def _changed_factors(cut: Cut, wide: Sequence[Call], thin: Sequence[Call]) -> dict[int, tuple[float, float]]:
    """Find the first number of each operation's arithmetic that is another in the thin recording: (before,
    after).
    """
    changed: dict[int, tuple[float, float]] = {}
    for i, call in aligned(cut, thin):
        for name, old in wide[i].arguments.items():
            new = call.arguments.get(name)
            counts = isinstance(old, float) or (type(old) is int and name in _FACTORS)
            if counts and isinstance(new, (int, float)) and new != old:
                changed.setdefault(i, (float(old), float(new)))
    return changed
