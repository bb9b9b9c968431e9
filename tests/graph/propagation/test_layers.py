"""What each kind of layer couples, in small networks whose groups are derived by hand; names and costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_cases import Net, conv
from support.graph_helpers import members, reasons, roles, summary, trace, trace_example, units
from torch import nn

from slimfast.graph.group_names import GroupNames


def test_a_chain_of_convolutions():
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(4, 5, 3))
    graph = trace(net, 2, 3, 8, 8)
    assert summary(graph) == {"0": ("channel", 4)}
    assert roles(graph["0"]) == {
        ("0.weight", 0): "producer",
        ("4.weight", 1): "consumer",
        ("0.bias", 0): "follower",
        ("1.weight", 0): "follower",
        ("1.bias", 0): "follower",
        ("1.running_mean", 0): "follower",
        ("1.running_var", 0): "follower",
    }
    assert set(map(tuple, members(graph["0"]).values())) == {tuple(range(4))}
    assert reasons(graph) == {("0.weight", 1): {"network input"}, ("4.weight", 0): {"network output"}}
    assert graph.axes["1.num_batches_tracked"] == ()
    assert [axis.length for axis in graph.axes["4.weight"]] == [5, 4, 3, 3]


def test_a_residual_addition_joins_its_two_producers():
    net = Net(lambda m, x: m.c(F.relu(m.a(x) + m.b(m.a(x)))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    graph = trace(net, 1, 3, 5, 5)
    assert summary(graph) == {"a[residual]": ("residual", 4)}
    assert roles(graph["a[residual]"])["a.weight", 0] == "producer"
    assert roles(graph["a[residual]"])["b.weight", 0] == "producer"
    assert roles(graph["a[residual]"])["b.weight", 1] == "consumer"


def test_a_filter_of_one_tap_lets_the_channels_along_its_axis_pass():
    """Three maps of 4 channels as a sequence: a filter of one tap mixes the maps and no channels."""

    def forward(m, x):
        maps = torch.stack([m.a(x), m.b(x), m.c(x)], 1)
        return m.d(m.mix(maps).flatten(1))

    parts = {name: nn.Linear(3, 4) for name in "abc"}
    for mix, n in ((nn.Conv1d(3, 1, 1), 4), (nn.Conv1d(3, 1, 3, padding=1), 0), (nn.Conv1d(3, 1, 1, 2), 0)):
        width = mix(torch.zeros(1, 3, 4)).shape[2]
        graph = trace(Net(forward, **parts, mix=mix, d=nn.Linear(width, 2)), 2, 3)
        assert sum(group.n for group in graph) == n
        if n:
            assert members(graph["a"])["c.weight", 0] == members(graph["a"])["d.weight", 1] == [0, 1, 2, 3]
        else:
            assert reasons(graph)["a.weight", 0] == {"aten.convolution slides along it"}


def test_a_depthwise_convolution_carries_its_channels_along():
    net = nn.Sequential(conv(3, 6), conv(6, 6, 3, groups=6), nn.ReLU6(), conv(6, 2))
    graph = trace(net, 1, 3, 8, 8)
    assert summary(graph) == {"0": ("channel", 6)}
    assert members(graph["0"])["1.weight", 0] == list(range(6))
    assert roles(graph["0"])["1.weight", 0] == "follower"
    assert {c.argument for op in graph.operations for c in op.constants} == {"groups"}


def test_a_depthwise_multiplier_makes_two_channels_of_one():
    net = nn.Sequential(conv(3, 4), conv(4, 8, 3, groups=4), conv(8, 2))
    graph = trace(net, 1, 3, 8, 8)
    assert members(graph["0"])["2.weight", 1] == units(4, 2)
    # the two outputs of every channel: as many of each channel must stay
    assert members(graph["1"])["2.weight", 1] == [0, 1] * 4


def test_a_grouped_convolution_loses_whole_groups_or_the_same_positions_of_all():
    net = nn.Sequential(conv(3, 6), conv(6, 12, 3, groups=2), conv(12, 2))
    graph = trace(net, 1, 3, 8, 8)
    assert summary(graph) == {"0[block]": ("block", 2), "0": ("channel", 3), "1": ("channel", 6)}
    assert members(graph["0[block]"])["0.weight", 0] == units(2, 3)
    assert members(graph["0[block]"])["1.weight", 0] == units(2, 6)
    assert members(graph["0[block]"])["2.weight", 1] == units(2, 6)
    assert members(graph["0"])["0.weight", 0] == [0, 1, 2] * 2
    assert members(graph["0"])["1.weight", 1] == [0, 1, 2]
    assert members(graph["1"])["1.weight", 0] == [*range(6)] * 2


@pytest.mark.parametrize(("groups", "n"), [(1, 4), (2, 2)])
def test_a_transposed_convolution_reads_rows_and_makes_columns(groups, n):
    net = nn.Sequential(conv(3, 4), nn.ConvTranspose2d(4, 6, 2, groups=groups), conv(6, 2))
    graph = trace(net, 1, 3, 8, 8)
    positions = 6 // groups
    made = graph["1"]
    assert roles(made)["1.weight", 1] == "producer"
    assert members(made)["1.weight", 1] == list(range(positions))
    assert members(made)["2.weight", 1] == [*range(positions)] * groups
    assert graph[0].n == n
    assert roles(graph[0])["1.weight", 0] == "consumer"


def test_squeeze_and_excite_joins_its_last_layer_to_the_channels_it_scales():
    def forward(m, x):
        x = m.a(x)
        return m.b(x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))))

    net = Net(forward, a=conv(3, 8), down=conv(8, 2), up=conv(2, 8), b=conv(8, 3))
    graph = trace(net, 1, 3, 6, 6)
    assert summary(graph) == {"a": ("channel", 8), "down": ("channel", 2)}
    assert roles(graph["a"]) == {
        ("a.weight", 0): "producer",
        ("down.weight", 1): "consumer",
        ("up.weight", 0): "producer",
        ("b.weight", 1): "consumer",
        ("a.bias", 0): "follower",
        ("up.bias", 0): "follower",
    }
    assert graph["a"].inexact is None


def test_a_spatial_gate_does_not_touch_the_channels():
    def forward(m, x):
        x = m.a(x)
        return m.b(x * torch.sigmoid(m.gate(x)).expand_as(x))

    graph = trace(Net(forward, a=conv(3, 8), gate=conv(8, 1), b=conv(8, 3)), 1, 3, 6, 6)
    assert summary(graph) == {"a": ("channel", 8)}


def test_layer_scale_position_embedding_and_class_token_follow_the_stream():
    def forward(m, x):
        x = m.embed(x)
        x = torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1) + m.pos
        return m.head((x + m.gamma * m.mlp(x))[:, 0])

    net = Net(
        forward,
        embed=nn.Linear(3, 6),
        cls=nn.Parameter(torch.zeros(1, 1, 6)),
        pos=nn.Parameter(torch.zeros(1, 5, 6)),
        gamma=nn.Parameter(torch.ones(6)),
        mlp=nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)),
        head=nn.Linear(6, 2),
    )
    graph = trace(net, 2, 4, 3)
    assert summary(graph) == {"embed[residual]": ("residual", 6), "mlp.0": ("channel", 10)}
    stream = roles(graph["embed[residual]"])
    assert stream["cls", 2] == stream["pos", 2] == stream["gamma", 0] == "follower"
    assert ("pos", 1) not in stream
    assert graph.axes["pos"][1].parts == ()


def test_gated_units_read_two_rows_or_two_layers():
    fused = Net(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    assert members(trace(fused, 2, 3)["a"])["a.weight", 0] == [*range(4), *range(4)]
    two = Net(
        lambda m, x: m.d(F.silu(m.g(x)) * m.u(x)), g=nn.Linear(3, 8), u=nn.Linear(3, 8), d=nn.Linear(8, 2)
    )
    graph = trace(two, 2, 3)
    assert summary(graph) == {"g": ("channel", 8)}
    assert roles(graph["g"])["u.weight", 0] == "producer"


def test_a_module_called_twice_has_one_axis():
    net = Net(lambda m, x: m.b(m.s(m.s(m.a(x)))), a=nn.Linear(3, 4), s=nn.Linear(4, 4), b=nn.Linear(4, 2))
    graph = trace(net, 2, 3)
    assert summary(graph) == {"a": ("channel", 4)}
    assert roles(graph["a"])["s.weight", 0] == "producer"
    assert roles(graph["a"])["s.weight", 1] == "consumer"


def test_tied_embeddings_produce_the_stream_under_one_name():
    def forward(m, ids):
        x = m.embed(ids)
        return m.head(x + m.mlp(x))

    net = Net(forward, embed=nn.Embedding(11, 6), mlp=nn.Linear(6, 6), head=nn.Linear(6, 11, bias=False))
    net.head.weight = net.embed.weight
    graph = trace_example(net, torch.zeros(2, 4, dtype=torch.int64))
    assert summary(graph) == {"embed[residual]": ("residual", 6)}
    assert roles(graph["embed[residual]"])["embed.weight", 1] == "producer"
    assert "head.weight" not in graph.axes
    assert graph.tied == {"head.weight": "embed.weight"}


def test_dict_and_tuple_inputs():
    net = Net(lambda m, x, y=None: {"out": (m.b(F.relu(m.a(x) * m.c(y))),)},
              a=nn.Linear(3, 4), c=nn.Linear(2, 4), b=nn.Linear(4, 2))  # fmt: skip
    by_name = trace_example(net, {"x": torch.zeros(1, 3), "y": torch.zeros(1, 2)})
    by_position = trace_example(net, (torch.zeros(1, 3), torch.zeros(1, 2)))
    assert summary(by_name) == summary(by_position) == {"a": ("channel", 4)}
    assert ("b.weight", 0) in reasons(by_name)


def test_groups_are_chosen_by_name_and_kind():
    net = nn.Sequential(
        conv(3, 4), conv(4, 5), nn.GroupNorm(5, 5), conv(5, 6), nn.GroupNorm(2, 6), conv(6, 2)
    )
    assert set(summary(trace(net, 1, 3, 4, 4))) == {"0", "1", "3[block]"}
    assert set(summary(trace(net, 1, 3, 4, 4, include=["block"]))) == {"3[block]"}
    assert set(summary(trace(net, 1, 3, 4, 4, include=["[01]"], exclude=["1"]))) == {"0"}
    kept = trace(net, 1, 3, 4, 4, exclude=["1"])
    assert reasons(kept)["1.weight", 0] == {"excluded by name"}
    assert kept.axes["1.weight"][0].parts == ()
    assert kept.axes["3.weight"][1].parts == ()


def test_a_buffer_computes_no_unit_but_goes_along_with_those_that_weights_compute():
    rotated = Net(
        lambda m, x: m.b(m.a(x) * F.linear(x, m.frequencies).cos()),
        frequencies=torch.zeros(6, 4),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    assert roles(trace(rotated, 3, 4)["a"]) == {
        ("a.weight", 0): "producer",
        ("a.bias", 0): "follower",
        ("frequencies", 0): "follower",
        ("b.weight", 1): "consumer",
    }
    alone = Net(
        lambda m, x: m.b(F.linear(x, m.frequencies)), frequencies=torch.zeros(6, 4), b=nn.Linear(6, 2)
    )
    assert summary(trace(alone, 3, 4)) == {}


def test_costs_are_products_of_the_axes():
    net = nn.Sequential(conv(3, 4, 3), conv(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 25, 7))
    graph = trace(net, 2, 3, 5, 5)

    def total(operation, keeps):
        product = 1
        for factor in operation.macs:
            product *= factor if isinstance(factor, int) else len(factor.kept(keeps))
        return product if operation.macs else 0

    wide = {op.module: total(op, {}) for op in graph.operations if op.macs}
    assert wide == {"0": 2 * 25 * 4 * 27, "1": 2 * 25 * 6 * 2 * 9, "3": 2 * 7 * 150}
    positions = next(group for group in graph if group.n == 2 and group.kind == "channel")
    thin = {op.module: total(op, {positions.name: [0]}) for op in graph.operations if op.macs}
    assert thin == {"0": 2 * 25 * 2 * 27, "1": 2 * 25 * 6 * 1 * 9, "3": 2 * 7 * 150}


def test_a_printed_name_is_a_glob_that_means_itself():
    group = "blocks.0.attn.qkv[head]"
    names = GroupNames.of({group: "head", "blocks.0.fc1": "channel"}, [])
    for glob in (group, "blocks.*qkv*", "hea?"):
        assert names.meant_by(glob, "here") == {group}
    with pytest.raises(ValueError, match="here: no group matches"):
        names.meant_by("blocks.0.attn.qkv[dim]", "here")
