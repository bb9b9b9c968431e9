"""Where units go: joined, in chunks, flattened, shuffled, padded, written into; what cannot follow a cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_cases import Net, conv
from support.graph_helpers import members, reasons, summary, trace, trace_example, units
from torch import nn


def test_concatenated_channels_stay_apart_and_meet_their_columns():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x), x], 1)), a=conv(3, 2), b=conv(3, 4), c=conv(9, 5))
    graph = trace(net, 1, 3, 5, 5)
    assert summary(graph) == {"a": ("channel", 2), "b": ("channel", 4)}
    assert members(graph["a"])["c.weight", 1] == [0, 1, *[-1] * 7]
    assert members(graph["b"])["c.weight", 1] == [-1, -1, 0, 1, 2, 3, -1, -1, -1]


def test_empty_tensors_that_are_concatenated_with_each_other_change_nothing():
    def forward(m, x):
        nothing = torch.cat([x.new_zeros(0), x.new_zeros(0)])
        return m.b(torch.cat([m.a(x), m.a(x)], 1)) + nothing.sum()

    graph = trace(Net(forward, a=conv(3, 4), b=conv(8, 2)), 1, 3, 5, 5)
    assert summary(graph) == {"a": ("channel", 4)}


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
        (lambda x: x + torch.arange(4), "aten.arange computes values from the numbers of its indices"),
        (lambda x: x * (x > 0).any(1, keepdim=True), "aten.any reduces it"),
    ],
)
def test_what_cannot_follow_a_cut_freezes_and_says_so(op, reason):
    graph = trace(Net(lambda m, x: m.b(op(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), 2, 3)
    assert len(graph) == 0
    assert reasons(graph)["a.weight", 0] == {reason}
    assert reasons(graph)["b.weight", 1] == {reason}
