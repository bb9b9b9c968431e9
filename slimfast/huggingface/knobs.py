"""Kinds of layers that the configuration of a transformer can narrow, each by one share."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from slimfast.graph import ChannelGraph, ChannelGroup
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.recording.forward import dataless_copy
from slimfast.graph.recording.network import Network
from slimfast.huggingface.config_search import Described, find_config
from slimfast.huggingface.stock import (
    StockShapes,
    changed_config,
    config_of,
    leaves,
    multiple_for_experts,
    unsaved_buffers,
)
from slimfast.plans.multiples import Multiples, check_multiples, multiples_of


@dataclass(frozen=True, slots=True)
class Knob:
    """Groups that keep the same share of their units: ``steps`` are the shares that are whole numbers of
    units in all of them.
    """

    groups: tuple[ChannelGroup, ...]
    steps: tuple[float, ...]

    def widths(self, step: int) -> dict[str, int]:
        return {group.name: round(self.steps[step] * group.n) for group in self.groups}


class Knobs:
    """The knobs of a traced transformer.

    ``chosen``: those that there are, no group in two of them. ``whole``: why the groups of the other families
    keep all of their units, by the name of the first of each.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, multiple_of: Multiples) -> None:
        self._model = model
        self._graph = graph
        experts = multiple_for_experts(model)
        multiples = multiples_of(graph, check_multiples(multiple_of, "plan_uniform"), "plan_uniform")
        self._multiples = {name: math.lcm(multiple, experts) for name, multiple in multiples.items()}
        self._shapes = StockShapes(model)
        self._buffers = unsaved_buffers(model)
        self._why: dict[str, str] = {}
        self.whole: dict[str, str] = {}
        self.chosen = self._find()

    def config_of_cut(self, widths: Mapping[str, int]) -> Described:
        """Find the configuration of the model cut to these widths."""
        keeps = {name: np.arange(width, dtype=np.int64) for name, width in widths.items()}
        cut, dataless = Cut(self._graph, keeps), Network.of(dataless_copy(Network.of(self._model)))
        patches = cut.attribute_patches(dataless)
        thin = cut.thin_copy(dataless, patches=patches, share=True)
        before = {name: tuple(tensor.shape) for name, tensor in dataless.tensors.items()}
        buffers = {
            name: select_indices(buffer, cut.tensor_cuts.get(name, {}))
            for name, buffer in self._buffers.items()
            if name in self._graph.axes
        }
        calls = [call.example() for call in (self._graph.inputs, *self._graph.also)]
        return find_config(thin, before, patches, calls, buffers=buffers, shapes=self._shapes)

    def _find(self) -> list[Knob]:
        """Find kinds of layers that the configuration can narrow on their own, and those it can narrow
        together.
        """
        families: dict[tuple[str, str, int], list[ChannelGroup]] = {}
        for group in self._graph:
            families.setdefault((group.kind, re.sub(r"\d+", "*", group.name), group.n), []).append(group)
        alone = {key: self._knob(family) for key, family in families.items()}
        left = [family for key, family in families.items() if alone[key] is None]
        # All of the others, or a pair of them: heads and the residual stream, where their ratio is fixed.
        together = [left] * (len(left) > 1) + [list(pair) for pair in itertools.combinations(left, 2)]
        joined = [self._knob([group for family in several for group in family]) for several in together]
        found = sorted(
            (knob for knob in [*alone.values(), *joined] if knob is not None),
            key=lambda knob: -len(knob.steps),
        )
        # A group turns with one knob, the one with the finest steps.
        taken: set[str] = set()
        chosen = []
        for knob in found:
            names = {group.name for group in knob.groups}
            if len(knob.steps) > 1 and not names & taken:
                taken |= names
                chosen.append(knob)
        self.whole = {
            family[0].name: self._why[family[0].name] for family in left if family[0].name not in taken
        }
        return chosen

    def _knob(self, groups: Sequence[ChannelGroup]) -> Knob | None:
        """Make the knob of these groups, with the steps that the configuration takes; None where it has
        none.
        """
        shares = _steps(groups, self._multiples)
        # A half is what most sizes that must go together allow.
        probe = min(shares, key=lambda share: abs(share - 0.5))
        if probe == 1:
            self._note(groups, "no part of it is a whole number of units, or of the multiples")
            return None
        found = self.config_of_cut({group.name: round(probe * group.n) for group in groups})
        if found.config is None:
            self._note(groups, found.why)
            return None
        before, after = (dict(leaves(c.to_dict())) for c in (config_of(self._model), found.config))
        changes = {
            place: (old, after.get(place))
            for place, old in before.items()
            if old is not None and after.get(place) != old
        }

        def taken(share: float) -> bool:
            at = {place: round(share * old) for place, (old, _) in changes.items()}
            return changed_config(config_of(self._model), at) is not None

        return Knob(tuple(groups), tuple(share for share in shares if share == 1 or taken(share)))

    def _note(self, groups: Sequence[ChannelGroup], why: str) -> None:
        """Keep why these groups cannot be narrowed; that the class would compute something else says more
        than that nothing has their shapes.
        """
        for group in groups:
            if group.name not in self._why or why.startswith("with "):
                self._why[group.name] = why


def _steps(groups: Sequence[ChannelGroup], multiples: Mapping[str, int]) -> tuple[float, ...]:
    """List the shares that leave every group a whole number of units, a multiple where they are channels."""
    common = math.gcd(*(group.n for group in groups))
    shares = [j / common for j in range(1, common + 1)]

    def whole(group: ChannelGroup, share: float) -> bool:
        return share == 1 or group.kind == "head" or round(share * group.n) % multiples[group.name] == 0

    return tuple(share for share in shares if all(whole(group, share) for group in groups))
