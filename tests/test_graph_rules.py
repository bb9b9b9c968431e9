"""What each kind of layer couples: small networks whose groups are derived by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_helpers import members, reasons, roles, summary, trace, trace_example, units
from torch import nn

from slimfast.graph.groups import matches


class Net(nn.Module):
    """Modules by name and a forward over them."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self._forward = forward

    def forward(self, *args, **kwargs):
        return self._forward(self, *args, **kwargs)


def conv(i, o, k=1, **keywords):
    return nn.Conv2d(i, o, k, padding=k // 2, **keywords)


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


def test_concatenated_channels_stay_apart_and_meet_their_columns():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x), x], 1)), a=conv(3, 2), b=conv(3, 4), c=conv(9, 5))
    graph = trace(net, 1, 3, 5, 5)
    assert summary(graph) == {"a": ("channel", 2), "b": ("channel", 4)}
    assert members(graph["a"])["c.weight", 1] == [0, 1, *[-1] * 7]
    assert members(graph["b"])["c.weight", 1] == [-1, -1, 0, 1, 2, 3, -1, -1, -1]


def test_chunks_shrink_together_and_sections_of_given_sizes_alone():
    halves = Net(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, 1))), a=conv(3, 8), b=conv(4, 2))
    assert members(trace(halves, 1, 3, 5, 5)["a"])["a.weight", 0] == [*range(4), *range(4)]
    parts = Net(lambda m, x: m.b(torch.split(m.a(x), [2, 6], 1)[1]), a=conv(3, 8), b=conv(6, 2))
    graph = trace(parts, 1, 3, 5, 5)
    sections = {(c.argument, c.value) for op in graph.operations for c in op.constants}
    unread, read = graph["a"], graph["a#2"]
    assert members(unread) == {("a.weight", 0): [0, 1, *[-1] * 6], ("a.bias", 0): [0, 1, *[-1] * 6]}
    assert members(read)["a.weight", 0] == [-1, -1, *range(6)]
    assert members(read)["b.weight", 1] == list(range(6))
    assert sections == {("split_sizes[0]", 2), ("split_sizes[1]", 6)}


def test_chunks_read_by_different_layers_shrink_together_too():
    def forward(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left) + m.c(right)

    graph = trace(Net(forward, a=conv(3, 8), b=conv(4, 2), c=conv(4, 2)), 1, 3, 5, 5)
    # the chunks of a shorter axis are halves again, wherever its channels were removed
    assert members(graph["a"])["a.weight", 0] == [*range(4), *range(4)]
    assert members(graph["a"])["c.weight", 1] == list(range(4))


def test_a_smaller_last_chunk_goes_along_with_the_beginning_of_the_others():
    """10 channels in chunks of 4, 4 and 2: what is cut from the last is cut from all."""

    def forward(m, x):
        a, b, c = m.a(x).chunk(3, 1)
        return m.d(F.relu(a + m.b(b))) + m.e(c)

    net = Net(forward, a=conv(3, 10), b=conv(4, 4, groups=4), d=conv(4, 2), e=conv(2, 2))
    graph = trace(net, 1, 3, 5, 5)
    first, rest = (members(graph[name]) for name in ("a", "a#2"))
    assert first["a.weight", 0] == [0, 1, -1, -1, 0, 1, -1, -1, 0, 1]
    assert rest["a.weight", 0] == [-1, -1, 0, 1, -1, -1, 0, 1, -1, -1]
    assert first["e.weight", 1] == [0, 1]


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


def test_flatten_gives_every_channel_its_block_of_columns():
    net = nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
    graph = trace(net, 2, 3, 8, 8)
    assert members(graph["0"])["3.weight", 1] == units(4, 4)


def test_an_unflattened_linear_layer_is_cut_by_whole_channels():
    net = nn.Sequential(nn.Linear(3, 24), nn.Unflatten(1, (6, 2, 2)), conv(6, 2))
    graph = trace(net, 2, 3)
    # 6 channels of a 2 x 2 map whose positions the convolution needs
    assert summary(graph) == {"0": ("channel", 6)}
    assert members(graph["0"])["0.weight", 0] == units(6, 4)


def test_group_norm_goes_by_whole_groups():
    net = nn.Sequential(conv(3, 6), nn.GroupNorm(3, 6), conv(6, 2))
    graph = trace(net, 1, 3, 4, 4)
    assert summary(graph) == {"0[block]": ("block", 3)}
    assert members(graph["0[block]"])["0.weight", 0] == units(3, 2)
    assert members(graph["0[block]"])["1.weight", 0] == units(3, 2)
    assert graph["0[block]"].inexact is None


@pytest.mark.parametrize("norm", [nn.GroupNorm(6, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6)])
def test_norms_of_single_channels_are_exact(norm):
    graph = trace(nn.Sequential(conv(3, 6), norm, conv(6, 2)), 2, 3, 4, 4)
    assert summary(graph) == {"0": ("channel", 6)}
    assert members(graph["0"])["1.weight", 0] == list(range(6))
    assert graph["0"].inexact is None


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6)])
def test_norms_over_the_channels_are_allowed_but_inexact(norm):
    net = nn.Sequential(nn.Linear(3, 6), norm, nn.Linear(6, 2))
    graph = trace(net, 2, 4, 3)
    assert members(graph["0"])["1.weight", 0] == list(range(6))
    assert "along it at 1" in graph["0"].inexact
    one_group = trace(nn.Sequential(conv(3, 6), nn.GroupNorm(1, 6), conv(6, 2)), 1, 3, 4, 4)
    assert one_group["0"].inexact is not None


@pytest.mark.parametrize("name", ["sum", "prod", "amax", "amin", "mean", "var", "logsumexp", "softmax"])
def test_statistics_over_the_channels_are_allowed_but_inexact(name):
    net = Net(lambda m, x: m.b(m.a(x) - _over_channels(m.a(x), name)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    graph = trace(net, 2, 3)
    assert summary(graph) == {"a": ("channel", 4)}
    told = graph["a"].inexact
    assert name in told
    assert "along it" in told


def _over_channels(x, name):
    return x.softmax(-1) if name == "softmax" else getattr(torch, name)(x, -1, keepdim=True)


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


class Attention(nn.Module):
    """Self attention over (B, T, C) with a fused or separate projection and ``kv`` key/value heads."""

    def __init__(self, c, heads, kv=None, *, fused=False, scale=None):
        super().__init__()
        self.heads, self.kv, self.dim, self.scale = heads, kv or heads, c // heads, scale
        if fused:
            self.qkv = nn.Linear(c, 3 * c)
        else:
            self.q = nn.Linear(c, c)
            self.k = nn.Linear(c, self.kv * self.dim)
            self.v = nn.Linear(c, self.kv * self.dim)
        self.proj = nn.Linear(c, c)

    def forward(self, x):
        b, t, _ = x.shape
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(x).view(b, t, self.heads, self.dim).transpose(1, 2)
            k = self.k(x).view(b, t, self.kv, self.dim).transpose(1, 2)
            v = self.v(x).view(b, t, self.kv, self.dim).transpose(1, 2)
            repeats = self.heads // self.kv
            if repeats > 1:
                k = k[:, :, None].expand(b, self.kv, repeats, t, self.dim).reshape(b, -1, t, self.dim)
                v = v[:, :, None].expand(b, self.kv, repeats, t, self.dim).reshape(b, -1, t, self.dim)
        if self.scale is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, -1))


def _attend(attention, c=12):
    net = nn.Sequential(nn.Linear(5, c), attention, nn.Linear(c, 3))
    return trace(net, 2, 7, 5)


def test_heads_of_a_fused_projection():
    graph = _attend(Attention(12, 3, fused=True))
    assert summary(graph) == {"0": ("channel", 12), "1.qkv[head]": ("head", 3), "1.proj": ("channel", 12)}
    assert members(graph["1.qkv[head]"]) == {
        ("1.qkv.weight", 0): units(3, 4) * 3,
        ("1.qkv.bias", 0): units(3, 4) * 3,
        ("1.proj.weight", 1): units(3, 4),
    }
    # the head dims of q, k and v shrink together here and the default scale holds them


def test_head_dims_with_a_scale_of_the_models_own():
    graph = _attend(Attention(12, 3, fused=True, scale=0.5))
    assert members(graph["1.qkv[head_dim]"])["1.proj.weight", 1] == [0, 1, 2, 3] * 3
    assert members(graph["1.qkv[head_dim]"])["1.qkv.weight", 0] == [0, 1, 2, 3] * 9


def test_as_many_heads_as_dims_are_still_two_groups():
    graph = _attend(Attention(9, 3, fused=True, scale=0.5), 9)
    assert members(graph["1.qkv[head]"])["1.proj.weight", 1] == units(3, 3)
    assert members(graph["1.qkv[head_dim]"])["1.proj.weight", 1] == [0, 1, 2] * 3


def test_heads_and_dims_of_separate_projections():
    graph = _attend(Attention(12, 3))
    assert members(graph["1.q[head]"]) == {
        ("1.q.weight", 0): units(3, 4),
        ("1.k.weight", 0): units(3, 4),
        ("1.v.weight", 0): units(3, 4),
        ("1.q.bias", 0): units(3, 4),
        ("1.k.bias", 0): units(3, 4),
        ("1.v.bias", 0): units(3, 4),
        ("1.proj.weight", 1): units(3, 4),
    }
    # those of q and k are held by the default scale, those of v are free
    assert members(graph["1.v[head_dim]"]) == {
        ("1.v.weight", 0): [0, 1, 2, 3] * 3,
        ("1.v.bias", 0): [0, 1, 2, 3] * 3,
        ("1.proj.weight", 1): [0, 1, 2, 3] * 3,
    }
    assert not any(("1.q.weight", 0) in members(group) for group in graph if group.kind == "head_dim")


@pytest.mark.parametrize("kv", [2, 3])
def test_grouped_queries_go_by_key_value_head_or_by_query_of_all(kv):
    heads = 6
    graph = _attend(Attention(12, heads, kv))
    by_kv = next(group for group in graph if group.kind == "head" and ("1.k.weight", 0) in members(group))
    assert by_kv.n == kv
    assert members(by_kv)["1.q.weight", 0] == units(kv, 12 // kv)
    assert members(by_kv)["1.k.weight", 0] == units(kv, 2)
    assert members(by_kv)["1.proj.weight", 1] == units(kv, 12 // kv)
    by_query = next(
        group for group in graph if group.kind == "head" and ("1.k.weight", 0) not in members(group)
    )
    assert members(by_query)["1.q.weight", 0] == units(heads // kv, 2) * kv


def test_grouped_queries_of_the_fused_attention():
    def forward(m, x):
        q = m.q(x).view(2, 7, 4, 3).transpose(1, 2)
        k, v = (p(x).view(2, 7, 2, 3).transpose(1, 2) for p in (m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(2, 7, -1))

    net = Net(forward, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 3))
    graph = trace_example(net, torch.zeros(2, 7, 5))
    shared = next(group for group in graph if ("k.weight", 0) in members(group) and group.kind == "head")
    assert members(shared)["q.weight", 0] == units(2, 6)
    assert members(shared)["v.weight", 0] == units(2, 3)


def test_multi_head_attention_of_pytorch():
    net = Net(lambda m, x: m.o(m.a(m.i(x), m.i(x), m.i(x))[0]), i=nn.Linear(5, 8),
              a=nn.MultiheadAttention(8, 2, batch_first=True), o=nn.Linear(8, 3))  # fmt: skip
    graph = trace_example(net, torch.zeros(2, 4, 5))
    heads = next(group for group in graph if group.kind == "head")
    assert members(heads)["a.in_proj_weight", 0] == units(2, 4) * 3
    assert members(heads)["a.out_proj.weight", 1] == units(2, 4)


def test_a_shape_that_is_read_and_passed_on_ties_two_axes():
    def forward(m, x):
        x = m.a(x)
        b, t, c = x.shape
        y = m.v(x).view(b, t, m.h, m.d).transpose(1, 2)
        return m.o(y.transpose(1, 2).reshape(b, t, c))

    net = Net(forward, a=nn.Linear(5, 6), v=nn.Linear(6, 6), o=nn.Linear(6, 3))
    net.h, net.d = 2, 3
    graph = trace_example(net, torch.zeros(2, 4, 5))
    by_size = {group.n: group for group in graph}
    assert members(by_size[2])["a.weight", 0] == units(2, 3)
    assert members(by_size[3])["a.weight", 0] == [0, 1, 2] * 2
    assert members(by_size[2])["v.weight", 0] == units(2, 3)


def test_gated_units_read_two_rows_or_two_layers():
    fused = Net(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    assert members(trace(fused, 2, 3)["a"])["a.weight", 0] == [*range(4), *range(4)]
    two = Net(
        lambda m, x: m.d(F.silu(m.g(x)) * m.u(x)), g=nn.Linear(3, 8), u=nn.Linear(3, 8), d=nn.Linear(8, 2)
    )
    graph = trace(two, 2, 3)
    assert summary(graph) == {"g": ("channel", 8)}
    assert roles(graph["g"])["u.weight", 0] == "producer"


class Shuffle(nn.Module):
    def forward(self, x):
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@pytest.mark.parametrize("shuffle", [Shuffle(), nn.ChannelShuffle(2)])
def test_a_channel_shuffle_moves_units(shuffle):
    graph = trace(nn.Sequential(conv(3, 6), shuffle, conv(6, 2)), 1, 3, 4, 4)
    positions = next(group for group in graph if group.n == 3)
    # channel 2 * i + g of the next layer is channel 3 * g + i of this one
    assert members(positions)["0.weight", 0] == [0, 1, 2, 0, 1, 2]
    assert members(positions)["2.weight", 1] == [0, 0, 1, 1, 2, 2]


def test_pixel_shuffle_keeps_its_blocks():
    graph = trace(nn.Sequential(conv(3, 12), nn.PixelShuffle(2), conv(3, 2)), 1, 3, 4, 4)
    assert members(graph["0"]) == {
        ("0.weight", 0): units(3, 4),
        ("0.bias", 0): units(3, 4),
        ("2.weight", 1): [0, 1, 2],
    }
    back = trace(nn.Sequential(conv(3, 2), nn.PixelUnshuffle(2), conv(8, 2)), 1, 3, 4, 4)
    assert members(back["0"])["2.weight", 1] == units(2, 4)


def test_padded_shortcuts_join_streams_of_different_width():
    def forward(m, x):
        x = m.a(x)
        x = x + m.b(x)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.c(x)
        return m.d(x)

    net = Net(forward, a=conv(3, 4), b=conv(4, 4), c=conv(4, 8, stride=2), d=conv(8, 2))
    graph = trace(net, 1, 3, 8, 8)
    stream, rest = graph["a[residual]"], graph["c"]
    assert (stream.n, rest.n) == (4, 2)
    assert members(stream)["c.weight", 0] == [-1, -1, 0, 1, 2, 3, -1, -1]
    assert members(stream)["b.weight", 0] == [0, 1, 2, 3]
    # one number says how many are padded on either side: they go in pairs
    assert members(rest)["c.weight", 0] == [0, 1, -1, -1, -1, -1, 0, 1]


def test_padding_told_by_two_attributes_goes_one_by_one():
    net = Net(lambda m, x: F.pad(m.a(x), (m.before, m.after)) + m.b(x), a=nn.Linear(3, 4), b=nn.Linear(3, 8))
    head = nn.Sequential(net, nn.Linear(8, 2))
    net.before = net.after = 2
    assert members(trace(head, 2, 3)["0.b"])["0.b.weight", 0] == [0, 1, -1, -1, -1, -1, 2, 3]


def test_writing_into_a_slice_joins_what_is_written():
    def forward(m, x):
        y = x.new_zeros(x.shape[0], 6)
        y[:, :4] = m.a(x)
        y[:, 4:].copy_(m.b(x))
        return m.c(y)

    net = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 2), c=nn.Linear(6, 2))
    graph = trace_example(net, torch.zeros(2, 3))
    assert members(graph["a"])["c.weight", 1] == [0, 1, 2, 3, -1, -1]
    assert members(graph["b"])["c.weight", 1] == [-1, -1, -1, -1, 0, 1]


def test_in_place_addition_to_a_view_reaches_the_base():
    def forward(m, x):
        y = m.a(x)
        y[:, 2:].add_(m.b(x))
        return m.c(y)

    net = Net(forward, a=nn.Linear(3, 5), b=nn.Linear(3, 3), c=nn.Linear(5, 2))
    graph = trace_example(net, torch.zeros(2, 3))
    assert members(graph["a[residual]"])["a.weight", 0] == [-1, -1, 0, 1, 2]
    assert members(graph["a[residual]"])["b.weight", 0] == [0, 1, 2]
    assert members(graph["a"])["c.weight", 1] == [0, 1, -1, -1, -1]


def test_flipped_channels_are_reversed():
    graph = trace(Net(lambda m, x: m.b(m.a(x).flip(1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), 2, 3)
    assert members(graph["a"])["b.weight", 1] == [3, 2, 1, 0]


def test_every_second_index_is_taken_of_runs_that_go_whole():
    """As interleaved rotary embeddings do; behind a cut of one index alone, even places would become odd."""
    net = Net(lambda m, x: (m.b(m.a(x)[:, 1::2]), m.c(m.a(x))), a=nn.Linear(3, 8), b=nn.Linear(4, 2),
              c=nn.Linear(8, 2))  # fmt: skip
    graph = trace(net, 2, 3)
    assert members(graph["a"]) == {
        ("a.weight", 0): units(4, 2),
        ("a.bias", 0): units(4, 2),
        ("b.weight", 1): units(4),
        ("c.weight", 1): units(4, 2),
    }

    def rotated(m, x):
        x = m.a(x)
        turned = torch.stack([-x[:, 1::2], x[:, ::2]], -1).reshape(x.shape)
        return m.b(x * m.cos + turned * m.sin)

    parts = {"cos": torch.rand(8), "sin": torch.rand(8)}
    net = Net(rotated, a=nn.Linear(3, 8), b=nn.Linear(8, 2), **parts)
    found = members(trace(net, 2, 3)["a"])
    assert found["a.weight", 0] == found["b.weight", 1] == found["cos", 0] == units(4, 2)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (lambda x: x.cumsum(1), "aten.cumsum mixes along it"),
        (lambda x: x.roll(1, 1), "aten.roll shifts it by a fixed number"),
        (lambda x: x[:, torch.tensor([0, 3, 1, 2])], "aten.index looks it up by value"),
        (lambda x: x.sort(1).values, "aten.sort mixes along it"),
        (lambda x: torch.cat([x[:, :3:2]] * 2, 1), "aten.slice takes one of every 2 indices of it"),
        (lambda x: torch.fft.fft(x, dim=1).real, "aten._fft_r2c mixes along it"),
        (lambda x: x + torch.arange(4), "aten.add joins it with a fixed axis"),
        (lambda x: x * (x > 0).any(1, keepdim=True), "aten.any reduces it"),
    ],
)
def test_what_cannot_follow_a_cut_freezes_and_says_so(op, reason):
    graph = trace(Net(lambda m, x: m.b(op(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), 2, 3)
    assert len(graph) == 0
    assert reasons(graph)["a.weight", 0] == {reason}
    assert reasons(graph)["b.weight", 1] == {reason}


@pytest.mark.parametrize(
    ("cell", "op"), [(nn.LSTM, "aten.lstm"), (nn.GRU, "aten.gru"), (nn.RNN, "aten.rnn_tanh")]
)
def test_recurrent_layers_freeze_what_they_read_and_make(cell, op):
    net = Net(lambda m, x: m.c(m.b(m.r(m.a(x))[0])), a=nn.Linear(3, 4), r=cell(4, 5, batch_first=True),
              b=nn.Linear(5, 6), c=nn.Linear(6, 2))  # fmt: skip
    graph = trace(net, 2, 7, 3)
    assert summary(graph) == {"b": ("channel", 6)}
    assert reasons(graph)["a.weight", 0] == {op}
    assert {f.module for f in graph.frozen if f.tensor == "a.weight" and f.dim == 0} == {"r"}
    assert reasons(graph)["b.weight", 1] == {op}


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


def test_attention_costs_both_of_its_products():
    graph = _attend(Attention(12, 3))
    (attention,) = (op for op in graph.operations if op.name.endswith("scaled_dot_product_attention"))
    product = 1
    for factor in attention.macs:
        product *= factor if isinstance(factor, int) else factor.length
    # 2 samples, 3 heads, 7 x 7 pairs, 4 dims of q and 4 of v
    assert product == 2 * 3 * 49 * 8


def test_the_same_network_gives_the_same_graph():
    first, second = (_attend(Attention(12, 6, 2)) for _ in range(2))
    assert [(g.name, g.kind, members(g)) for g in first] == [(g.name, g.kind, members(g)) for g in second]
    assert first.frozen == second.frozen


def test_a_printed_name_is_a_glob_that_means_itself():
    assert matches(["blocks.0.attn.qkv[head]"], "blocks.0.attn.qkv[head]", "head")
    assert matches(["blocks.*"], "blocks.0.attn.qkv[head]", "head")
    assert matches(["hea?"], "blocks.0.attn.qkv[head]", "head")
    assert not matches(["blocks.0.attn.qkv[dim]"], "blocks.0.attn.qkv[head]", "head")


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_left_whole_and_told_with_all_that_they_touch(kind):
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 6)
            self.r = getattr(nn, kind)(6, 5, batch_first=True)
            self.c, self.d = nn.Linear(5, 9), nn.Linear(9, 2)

        def forward(self, x):
            return self.d(self.c(self.r(self.b(self.a(x).relu()))[0]).relu())

    graph = trace(Between(), 2, 4, 3)
    assert set(summary(graph)) == {"a", "c"}
    told = reasons(graph)
    op = {"LSTM": "aten.lstm", "GRU": "aten.gru", "RNN": "aten.rnn_tanh"}[kind]
    for weight, dim in (("r.weight_ih_l0", 0), ("r.weight_ih_l0", 1), ("r.weight_hh_l0", 1), ("b.weight", 0)):
        assert told[weight, dim] == {op}
