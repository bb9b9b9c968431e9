"""The pairs of linear layers inside attention heads, and which groups of head dims they fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slimfast.graph.channel_graph import ChannelGroup
from slimfast.pruning.rotation.walk import Layer, Walk


@dataclass(frozen=True, slots=True)
class Slice:
    """Some indices of one dim of a weight, in the order of the head's dims; ``bias``, of the same indices."""

    weight: str
    dim: int
    indices: tuple[int, ...]
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class HeadPair:
    """Two factors whose product over the dims of one head is all that the network sees of them.

    ``kind``: ``"value"`` (value rows, and the columns of the layers that read them) or ``"score"`` (the rows
    of the key, and those of the queries that share it). ``units``: the group's unit of each dim.
    """

    kind: str
    first: Slice
    second: tuple[Slice, ...]
    units: tuple[int, ...]


class Unturnable(Exception):
    """Why a group's head dims have to stay as they are."""


def pairs_of(walk: Walk, group: ChannelGroup) -> list[HeadPair]:
    """Find the pairs that a group of head dims consists of; :class:`Unturnable` where it has more to it."""
    by_code = _Codes(walk)
    units, columns = _units_of(walk, group)
    pairs: list[HeadPair] = []
    seen: set[int] = set()
    read: set[tuple[str, int]] = set()
    for kind, first, others in _heads_of(walk, by_code, units):
        for codes in (first, *others):
            if len(set(codes)) < len(codes) or seen & set(codes):
                raise Unturnable(f"{by_code.name(codes[0])} takes part in several heads")
            seen.update(codes)
            for code in codes:
                if (why := by_code.spoiled(code)) is not None:
                    raise Unturnable(f"{by_code.name(code)}: {why}")
        own = [tuple(units.get(code, -1) for code in codes) for codes in (first, *others)]
        if sorted(own[0]) != list(range(group.n)) or any(each != own[0] for each in own):
            raise Unturnable(f"{by_code.name(first[0])}: a unit is not one dim of every head")
        if kind == "score":
            pairs.append(HeadPair(kind, by_code.slice(first), tuple(map(by_code.slice, others)), own[0]))
            continue
        readers = list(_readers(walk, first))
        if not readers:
            raise Unturnable(f"{by_code.name(first[0])}: no linear layer reads what is made of it")
        for reader in readers:
            if (why := walk.spoiled.get(reader.weight)) is not None:
                raise Unturnable(why)
            read.update((reader.weight, index) for index in reader.indices)
        pairs.append(HeadPair(kind, by_code.slice(first), tuple(readers), own[0]))
    if left := set(units) - seen:
        raise Unturnable(f"{by_code.name(min(left))} belongs to it, and to no pair of linear layers")
    if left_columns := columns - read:
        raise Unturnable(f"{min(left_columns)[0]} reads it in another way")
    return pairs


def _units_of(walk: Walk, group: ChannelGroup) -> tuple[dict[int, int], set[tuple[str, int]]]:
    """Find the unit of each code of a group, and the columns that read it."""
    units: dict[int, int] = {}
    columns: set[tuple[str, int]] = set()
    biases = {layer.bias for layer in walk.layers.values()}
    for member in group.members:
        layer = walk.layers.get(member.tensor)
        places = zip(member.places.indices.tolist(), member.places.units.tolist(), strict=True)
        if layer is not None and member.dim == layer.dim:
            for index, unit in places:
                units[layer.first + index] = unit
        elif member.tensor in walk.columns and member.dim == walk.columns[member.tensor][0]:
            columns.update((member.tensor, index) for index, _ in places)
        elif member.tensor not in biases:
            raise Unturnable(f"{member.tensor} goes with it")
    return units, columns


def _heads_of(
    walk: Walk, by_code: _Codes, units: dict[int, int]
) -> Iterator[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """Yield the heads that touch a group: kind, codes of the first factor, codes of the second ones."""
    for head in sorted(walk.values):
        if any(code in units for code in head):
            yield "value", head, ()
    queries: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for query, key in sorted(walk.scores):
        if any(code in units for code in (*query, *key)):
            queries.setdefault(key, []).append(query)
    for key, several in queries.items():
        yield "score", key, tuple(several)


def _readers(walk: Walk, head: tuple[int, ...]) -> Iterator[Slice]:
    """Yield the columns that read a head, once for each query head that shares it."""
    for weight, (dim, codes) in walk.columns.items():
        along = np.asarray(codes)
        found = [np.flatnonzero(along == code) for code in head]
        counts = {len(each) for each in found}
        if counts == {0}:
            continue
        if len(counts) > 1:
            raise Unturnable(f"{weight} reads some of its dims more often than others")
        for number in range(counts.pop()):
            yield Slice(weight, dim, tuple(int(each[number]) for each in found))


class _Codes:
    """The layers behind codes."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._layers = sorted(walk.layers.values(), key=lambda layer: layer.first)
        self._firsts = [layer.first for layer in self._layers]
        biases = [layer.bias for layer in self._layers if layer.bias is not None]
        self._shared = {name for name in biases if biases.count(name) > 1}

    def layer(self, code: int) -> Layer:
        return self._layers[int(np.searchsorted(self._firsts, code, side="right")) - 1]

    def name(self, code: int) -> str:
        return self.layer(code).weight

    def spoiled(self, code: int) -> str | None:
        """Say why a row has to stay as it is; None where it has not."""
        layer, reasons = self.layer(code), self._walk.spoiled
        if layer.bias in self._shared:
            return f"several layers share {layer.bias}"
        by_name = (reasons.get(name) for name in (layer.weight, layer.bias) if name is not None)
        return reasons.get(code) or next((why for why in by_name if why), None)

    def slice(self, codes: tuple[int, ...]) -> Slice:
        layers = {self.layer(code).weight for code in codes}
        if len(layers) > 1:
            raise Unturnable(f"one head is made by {' and '.join(sorted(layers))}")
        layer = self.layer(codes[0])
        return Slice(layer.weight, layer.dim, tuple(code - layer.first for code in codes), layer.bias)
