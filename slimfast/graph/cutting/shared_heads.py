"""How many query heads share one head of keys and values: a number that not every road of an attention reads.

A kernel that is told of grouped queries does not ask for it, and the same attention with a mask, or another
kernel, repeats keys and values so many times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Places
from slimfast.graph.cutting.integer_attributes import HeldInteger

# Words in the names of such numbers: num_key_value_groups, n_rep, num_queries_per_kv.
_WORDS = frozenset(["group", "groups", "queries", "query", "rep", "repeat", "repeats", "reps"])


class SharedHeads:
    """The groups of query heads that share heads of keys and values, by the module around both."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._heads = heads = [(group, _produced_by(group)) for group in graph if group.kind == "head"]
        # The whole heads are made by queries, keys and values, those that share one by the queries alone.
        self._found = [
            (group, own, whole)
            for group, own in heads
            for other, whole in heads
            if other is not group and own < whole
        ]

    def axis(self, held: HeldInteger) -> Axis | None:
        """Find what an integer counts: the query heads of each head of keys and values of one attention;
        None where it is something else, or may be several.
        """
        if held.value < 2 or not held.words & _WORDS or held.of_the_hub:
            return None
        inside = f"{held.module}." if held.module else ""
        meant = {
            group.name
            for group, own, whole in self._found
            if group.n == held.value and all(name.startswith(inside) for name in own | whole)
        }
        if not meant:
            # One head of keys and values is no group: queries alone, one layer, make the only heads there.
            there = [(group, own) for group, own in self._heads if all(n.startswith(inside) for n in own)]
            meant = {
                g.name
                for g, own in there
                if g.n == held.value
                and len(there) == 1
                and _one_layer(own)
                and self._share_one(g, own, inside)
            }
        if len(meant) != 1:
            return None
        units = np.arange(held.value, dtype=np.int64)
        return Axis(held.value, ((meant.pop(), Places.of(units)),))

    def _share_one(self, group: ChannelGroup, own: frozenset[str], inside: str) -> bool:
        """Say whether there is a head of keys and values besides heads that one layer makes: further rows of
        that layer, or a layer of one head's length. Heads that have keys and values each share none.
        """
        axes = self._graph.axes
        for tensor, dim in {(m.tensor, m.dim) for m in group.producers()}:
            units = np.concatenate(
                [m.places.indices for m in group.members if (m.tensor, m.dim) == (tensor, dim)]
            )
            length, made = axes[tensor][dim].length, len(np.unique(units))
            others = (axes[name] for name in axes if name.startswith(inside) and name not in own)
            if made < length or any(made // group.n in _lengths(other) for other in others):
                return True
        return False


def _produced_by(group: ChannelGroup) -> frozenset[str]:
    return frozenset(member.tensor for member in group.producers())


def _one_layer(tensors: frozenset[str]) -> bool:
    return len({name.rpartition(".")[0] for name in tensors}) == 1


def _lengths(axes: Sequence[Axis]) -> set[int]:
    """List the lengths of a matrix."""
    return {axis.length for axis in axes} if len(axes) > 1 else set()
