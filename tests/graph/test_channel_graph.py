"""Axes and members keep the units of a group only where it has a say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slimfast.graph import trace_channels
from slimfast.graph.channel_graph import Axis, Places, alive_units

LENGTH = 7
_UNITS = st.lists(st.integers(-1, 3), min_size=LENGTH, max_size=LENGTH)


@given(_UNITS)
def test_places_are_the_units_of_each_index(units):
    dense = np.array(units)
    places = Places.of(dense)
    assert places.along().tolist() == units
    assert places.indices.tolist() == [i for i, unit in enumerate(units) if unit >= 0]
    assert [units[i] for i in places.indices] == places.units.tolist()


@given(st.lists(_UNITS, max_size=4), st.lists(st.booleans(), min_size=16, max_size=16))
def test_an_index_survives_when_every_unit_it_has_is_kept(parts, kept):
    axis = Axis.of(LENGTH, ((f"g{i}", np.array(units)) for i, units in enumerate(parts)))
    keeps = {f"g{i}": np.flatnonzero(kept[4 * i : 4 * i + 4]) for i in range(4)}
    alive = [
        index
        for index in range(LENGTH)
        if all(units[index] < 0 or kept[4 * i + units[index]] for i, units in enumerate(parts))
    ]
    assert axis.kept(keeps).tolist() == alive
    assert axis.alive({name: alive_units(keep) for name, keep in keeps.items()}).tolist() == alive
    assert axis.kept({}).tolist() == list(range(LENGTH))


@given(st.lists(_UNITS, max_size=4))
def test_terms_count_the_indices_by_the_groups_that_have_a_say(parts):
    axis = Axis.of(LENGTH, ((f"g{i}", np.array(units)) for i, units in enumerate(parts)))
    expected = Counter(
        tuple(f"g{i}" for i, units in enumerate(parts) if units[index] >= 0) for index in range(LENGTH)
    )
    assert axis.terms() == expected
    assert axis.groups == tuple(f"g{i}" for i, units in enumerate(parts) if max(units) >= 0)


class Dense(nn.Module):
    """Every layer reads what all before it have made."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8 + 4 * i, 4) for i in range(layers))
        self.head = nn.Linear(8 + 4 * layers, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], -1)
        return self.head(x)


def test_a_graph_of_concatenations_holds_each_unit_once_for_each_place():
    layers = 80
    graph = trace_channels(Dense(layers).eval(), torch.randn(1, 8))
    assert len(graph) == layers
    axes = {axis for axes in graph.axes.values() for axis in axes}
    axes |= {axis for operation in graph.operations for output in operation.outputs for axis in output}
    held = sum(len(places.units) for axis in axes for _, places in axis.places)
    # every concatenation once, and every layer's own rows
    pairs = layers * (layers + 1) // 2
    assert held == 4 * pairs + 4 * layers
    members = [member for group in graph for member in group.members]
    assert sum(member.role == "consumer" for member in members) == pairs
    assert all(len(member.places.units) == 4 for member in members)
