"""Groups that hold at the size of the example alone are left whole, with the reason."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from torch import nn

from slimfast.graph import trace_channels
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.other_sizes import other_inputs

MIXED = "a reshape mixes it with positions"


def conv(i, o, k=1):
    return nn.Conv2d(i, o, k, padding=k // 2)


def reasons(graph):
    return {(f.tensor, f.dim): f.reason for f in graph.frozen}


def mixing(reorder):
    """Channels that are laid over positions without a transpose, as in smp's MAnet."""

    def forward(m, x):
        f = m.a(x).relu()
        return m.b(f + reorder(m.v(f)))

    return Net(forward, a=conv(3, 64, 3), v=conv(64, 64), b=conv(64, 4))


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(
    "reorder",
    [
        lambda v: v.flatten(2).transpose(1, 2).reshape(len(v), 64, v.shape[2], v.shape[3]),
        lambda v: v.permute(0, 2, 3, 1).flatten(1).view(len(v), 64, *v.shape[2:]),
        lambda v: v.transpose(1, 3).contiguous().relu().view(-1).sigmoid().view(-1, 64, *v.shape[2:]),
    ],
)
def test_channels_laid_over_positions_are_left_whole(reorder, size):
    graph = trace_channels(mixing(reorder).eval(), torch.randn(1, 3, size, size))
    assert len(graph) == 0
    # at 8 x 8 there are as many positions as channels
    assert size == 8 or reasons(graph)["v.weight", 0].startswith(MIXED)


def test_channels_laid_over_positions_in_the_shape_that_they_had_are_left_whole():
    model = mixing(lambda v: v.flatten(2).transpose(1, 2).reshape(v.shape))
    assert len(trace_channels(model.eval(), torch.randn(1, 3, 4, 4))) == 0


def test_channels_laid_over_samples_are_left_whole():
    model = Net(
        lambda m, x: m.b(m.a(x).relu().reshape(m.parts, -1, 8).transpose(0, 1).flatten(1)),
        a=nn.Linear(5, 32),
        b=nn.Linear(32, 3),
    )
    model.parts = 4
    graph = trace_channels(model.eval(), torch.randn(4, 5))
    assert len(graph) == 0


def test_other_layers_of_such_a_network_are_cut():
    model = mixing(lambda v: v.flatten(2).transpose(1, 2).reshape(v.shape))
    model.tail = nn.Sequential(conv(4, 24), nn.ReLU(), conv(24, 2))
    whole = Net(lambda m, x: m.tail(m.inner(x)), inner=model, tail=model.tail)
    graph = trace_channels(whole.eval(), torch.randn(1, 3, 8, 8))
    assert [(group.name, group.n) for group in graph] == [("inner.b", 4), ("inner.tail.0", 24)]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_heads_that_join_the_samples_are_cut(batch):
    """(samples, heads, positions, dims) to (samples * heads, positions, dims) and back holds at any size."""

    def forward(m, x):
        b, n, _ = x.shape
        q, k, v = (
            f(x).view(b, n, m.heads, -1).transpose(1, 2).reshape(b * m.heads, n, -1) for f in (m.q, m.k, m.v)
        )
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return m.o(mixed.view(b, m.heads, n, -1).transpose(1, 2).reshape(b, n, -1))

    model = Net(forward, **{name: nn.Linear(6, 12) for name in "qkv"}, o=nn.Linear(12, 6))
    model.heads = 3
    graph = trace_channels(model.eval(), torch.randn(batch, 4, 6))
    assert {"q[head]"} <= {group.name for group in graph}
    assert not any(reason.startswith(MIXED) for reason in reasons(graph).values())


def test_a_network_of_one_size_keeps_its_groups():
    """It is called with that size only, so what holds there holds."""

    def forward(m, x):
        f = m.a(x).relu() + m.place
        return m.b(m.v(f).flatten(2).transpose(1, 2).reshape(1, 64, 2, 2))

    model = Net(forward, a=conv(3, 64), v=conv(64, 64), b=conv(64, 4))
    model.place = nn.Parameter(torch.zeros(1, 1, 2, 2))
    graph = trace_channels(model.eval(), torch.randn(1, 3, 2, 2))
    assert "a" in {group.name for group in graph}
    assert "the groups are those of this size" in graph.notes[0]


def test_no_other_size_is_looked_for_where_values_decide():
    """What the forward decides is known for its own inputs alone."""
    inner = mixing(lambda v: v.flatten(2).transpose(1, 2).reshape(v.shape)).eval()
    count = []

    def deciding(m, x):
        count.append(1)
        chosen = (x > 0).nonzero()
        return m.inner(x) + chosen.sum()

    graph = trace_channels(Net(deciding, inner=inner).eval(), torch.randn(1, 3, 4, 4))
    assert "decides by values, which are not known at another size" in " ".join(graph.notes)
    # meta, fake, real, fake with the decisions, in training mode, and a trial
    assert len(count) <= 7


@pytest.mark.parametrize(
    ("model", "example", "size", "batch", "shapes"),
    [
        (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 224, 224), True, True, ((2, 3, 128, 128),)),
        (nn.Conv2d(3, 4, 3), torch.randn(5, 3, 8, 6), True, True, ((3, 3, 4, 4),)),
        (nn.Conv2d(3, 4, 2), torch.randn(1, 3, 2, 2), True, True, ((2, 3, 3, 3),)),
        (nn.Linear(6, 2), torch.randn(1, 6), False, True, ((2, 6),)),
        (nn.Linear(6, 2), torch.randn(1, 9, 6), True, True, ((2, 5, 6),)),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
            torch.randn(2, 3, 2, 2),
            False,
            True,
            ((3, 3, 2, 2),),
        ),
        (nn.Embedding(7, 3), torch.randint(0, 7, (1, 16)), True, True, ((2, 8),)),
    ],
)
def test_inputs_of_another_size_and_batch(model, example, size, batch, shapes):
    found = other_inputs(Network.of(model), ((example,), {}))
    assert (found.size, found.batch, found.shapes) == (size, batch, shapes)
    model(*found.inputs[0])


def test_a_network_of_one_size_and_batch_takes_no_others():
    model = Net(lambda m, x: m.a(x + m.place), a=nn.Linear(6, 2), place=nn.Parameter(torch.zeros(2, 6)))
    assert other_inputs(Network.of(model), ((torch.randn(2, 6),), {})) is None


def test_no_node_that_an_edge_names_is_taken_away():
    """A graph network gets more nodes, or fewer edges."""

    def forward(m, x, edges):
        return m.a(x).index_add(0, edges[1], m.a(x)[edges[0]])

    model = Net(forward, a=nn.Linear(6, 2))
    inputs = (torch.randn(10, 6), torch.randint(0, 10, (2, 24)))
    inputs[1][0, 0] = 9
    found = other_inputs(Network.of(model), (inputs, {}))
    assert found.shapes == ((11, 6), (2, 16))
    model(*found.inputs[0])
