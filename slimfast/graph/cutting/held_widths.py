"""Attributes that hold a width although the forward does not read them: for exporters, heads and necks.

``num_features``, ``feature_info``, the number of channels of a norm without parameters: what holds the old
length of an axis that a cut changes is stale after it. It follows where one axis alone can be meant: the only
one of that length in the module, or the one that the attribute's name points at.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, TypeAlias

from slimfast.arrays import Arguments
from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph, HeldWidth
from slimfast.graph.cutting.integer_attributes import HeldInteger, held_integers
from slimfast.graph.cutting.patches import Patch, apply_patches, read_attribute
from slimfast.graph.cutting.shared_heads import SharedHeads
from slimfast.graph.cutting.width_scopes import Scopes
from slimfast.graph.recording.attributes import AttributeKey
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.forward import PROCESS_LOCK, ForwardFailed, Recording, record_at
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network

# A recording, and what was recorded with.
Run: TypeAlias = tuple[Recording, Arguments]

# Words in the names of attributes that are a width, and in those of attributes that are something else.
_WIDTHS = frozenset(
    ["c", "ch", "channel", "channels", "chans", "chs", "dim", "dims", "embed", "embedding", "feature",
     "features", "ff", "ffn", "filters", "heads", "hidden", "inner", "inplanes", "intermediate", "model",
     "nf", "outplanes", "planes", "r", "rank", "units", "width", "widths"]
)  # fmt: skip
_OTHERS = frozenset(
    ["anchors", "base", "batch", "bias", "bins", "bits", "block", "blocks", "classes", "depth", "depths",
     "dilation", "epoch", "epochs", "frames", "grid", "group", "groups", "height", "id", "idx", "image",
     "img", "index", "iter", "iters", "kernel", "labels", "layer", "layers", "len", "length", "level",
     "levels", "max", "min", "pad", "padding", "patch", "patches", "points", "position", "positions",
     "queries", "rate", "ratio", "reduction", "resolution", "sample", "samples", "seed", "seq", "shape",
     "stage", "stages", "step", "steps", "stride", "strides", "time", "tokens", "types", "version", "vocab",
     "window"]
)  # fmt: skip
# Words that say that what a module makes last is meant, that it is not, that a residual stream is, and that
# this is or what is made last.
_LAST = frozenset(["final", "head", "last", "out", "outplanes", "output"])
_FIRST = frozenset(["in", "inplanes", "input"])
_STREAM = frozenset(["channels", "dim", "dims", "embed", "embedding", "hidden", "model", "width", "widths"])
_FEATURES = frozenset(["feature", "features"])
_RANKS = frozenset(["lora_rank", "r", "rank"])
# Smaller numbers count axes and layers.
_SMALLEST = 4


def follow_held_widths(
    network: Network, graph: ChannelGraph, runs: Sequence[Run], read: Collection[AttributeKey] = ()
) -> ChannelGraph:
    """Add to a settled graph the attributes that follow a width though no recorded forward reads them.

    ``runs``: the recordings of the network, each with what it was called with. ``read``: attributes that one
    of them is known to read.

    What holds the length of an axis that can change, and of which it cannot be decided what it follows, is
    listed as ``undecided``.
    """
    decided, undecided = decide(network, graph, graph.attributes or (), read)
    unread = _unread(network, runs, decided)
    return replace(graph, attributes=(*(graph.attributes or ()), *unread), undecided=undecided)


def decide(
    network: Network, graph: ChannelGraph, settled: Iterable[Attribute], read: Collection[AttributeKey]
) -> tuple[list[Attribute], tuple[HeldWidth, ...]]:
    """Find the attributes that follow a width of this graph if the forward does not read them, and those of
    which it cannot be decided what they follow.

    ``settled``: the attributes of which more is known. ``read``: those that the forward is known to read.
    """
    known = {(attribute.module, _place_of(attribute)) for attribute in settled}
    stay = {
        (attribute.module, _place_of(attribute)) for attribute in (Attribute(*key, Axis(1)) for key in read)
    }
    scopes, shared = Scopes(graph), SharedHeads(graph)
    decided, undecided = list[Attribute](), list[HeldWidth]()
    for held in held_integers(network):
        if (held.module, held.place) in known:
            continue
        meant, axes = shared.axis(held), list[Axis]()
        if meant is None:
            if not _may_be_a_width(held):
                continue
            axes = _possible(held, scopes, graph)
            meant = _meant(held, axes, scopes, graph)
        if meant is not None:
            places = [(held.module, held.place), *held.elsewhere]
            free = [place for place in places if place not in known and place not in stay]
            decided += [_attribute(network, *place, meant) for place in free]
        elif axes:
            undecided.append(HeldWidth(held.module, held.place, held.value, tuple(axes)))
    return decided, tuple(undecided)


def _place_of(attribute: Attribute) -> str:
    """Name the place of an attribute, that of an item of a sequence too."""
    return attribute.name if attribute.index is None else f"{attribute.name}.{attribute.index}"


def _attribute(network: Network, module: str, place: str, axis: Axis) -> Attribute:
    """Make the attribute at a place: an item of a sequence of plain values goes with its neighbours."""
    around, _, last = place.rpartition(".")
    holder = read_attribute(network.modules[module], around) if around else None
    items = holder if isinstance(holder, tuple) and last.isdecimal() else ()
    if items and all(isinstance(item, (int, float, str, NoneType)) for item in items):
        return Attribute(module, around, int(last), axis)
    return Attribute(module, place, None, axis)


def is_rank(place: str) -> bool:
    """Say whether an attribute inside a configuration is named like the rank of an adapter."""
    *around, last = place.split(".")
    return last in _RANKS and any("config" in part for part in around)


def _may_be_a_width(held: HeldInteger) -> bool:
    """Say whether an integer is large enough, and not called something else (a size is one of whatever)."""
    size_of_something = "size" in held.words and not held.words & _WIDTHS
    return held.value >= _SMALLEST and not held.words & _OTHERS and not size_of_something


def _possible(held: HeldInteger, scopes: Scopes, graph: ChannelGraph) -> list[Axis]:
    """List the axes that an integer may be the length of."""
    if isinstance(held.names_module, str):
        # as the entries of feature_info do
        return scopes.made_at_the_end(f"{held.module}.{held.names_module}".lstrip("."), held.value)
    found = scopes.axes(held.module, held.value)
    return _of_kind("head", found, graph) if "heads" in held.words else found


def _meant(held: HeldInteger, axes: list[Axis], scopes: Scopes, graph: ChannelGraph) -> Axis | None:
    """Choose the one of these axes that an integer is the length of; None where that cannot be decided."""
    words, where = held.words, (held.module, held.value)
    if not words & _WIDTHS or held.of_the_hub:
        return None
    if isinstance(held.names_module, str):
        return axes[0] if axes else None
    if scopes.stays(*where):
        return None
    choices = [axes]
    if words & _FIRST:
        choices.append(scopes.read_first(*where))
    else:
        choices.append(scopes.made_last(*where) if words & _LAST else [])
        choices.append(_of_kind("residual", axes, graph) if words & (_STREAM | _FEATURES) else [])
        choices.append(scopes.made_last(*where) if words & _FEATURES else [])
    choices.append(scopes.own(*where))
    return next((few[0] for few in choices if len(few) == 1), None)


def _of_kind(kind: str, axes: list[Axis], graph: ChannelGraph) -> list[Axis]:
    """List those of these axes that one group of a kind has a say in, and no other."""
    kinds = {group.name: group.kind for group in graph}
    return [axis for axis in axes if len(axis.places) == 1 and kinds[axis.groups[0]] == kind]


def _unread(network: Network, runs: Sequence[Run], attributes: Sequence[Attribute]) -> list[Attribute]:
    """Leave out the attributes that a recorded forward reads: with them changed it runs otherwise.

    A trial cut has found that those need not follow; where one is a factor, it must not. What is read in one
    module of a class is taken to be read in all.
    """
    kinds: dict[tuple[type, str], list[Attribute]] = {}
    for attribute in attributes:
        kinds.setdefault((type(network.modules[attribute.module]), attribute.name), []).append(attribute)
    recorded = [_calls(recording.calls) for recording, _ in runs]
    if not kinds or _record_changed(network, runs, attributes) == recorded:
        return list(attributes)
    # again, for what runs once only (a memoised function) is in the first recording alone
    same = _record_changed(network, runs, ())
    waiting, unread = [list(kinds.values())], set[Attribute]()
    while waiting:
        some = waiting.pop()
        together = [attribute for kind in some for attribute in kind]
        if _record_changed(network, runs, together) == same:
            unread.update(together)
        elif len(some) > 1:
            waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
    return [attribute for attribute in attributes if attribute in unread]


def _record_changed(
    network: Network, runs: Sequence[Run], attributes: Sequence[Attribute]
) -> list[list[Any]] | None:
    """Record the network, not cut, with other numbers in these attributes; None where a forward fails."""
    changed = copy_network(network, {}, share=True)
    patches = []
    for attribute in attributes:
        place = _place_of(attribute)
        before = read_attribute(network.modules[attribute.module], place)
        patches.append(Patch(attribute.module, place, before, before + 1))
    apply_patches(changed, patches)
    with PROCESS_LOCK, warnings.catch_warnings():
        # about numbers that are nobody's
        warnings.simplefilter("ignore")
        try:
            again = [
                record_at(Network.of(changed), *inputs, recording.tensor_mode, decisions=recording.decisions)
                for recording, inputs in runs
            ]
        except ForwardFailed:
            return None
    return [_calls(recording.calls) for recording in again]


def _calls(calls: Sequence[Call]) -> list[Any]:
    """Write down what calls say, to be compared."""
    return [(call.op, call.module, repr(call.arguments), call.outputs) for call in calls]
