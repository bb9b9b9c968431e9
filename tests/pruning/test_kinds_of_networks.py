"""Kinds of networks that people slim, down the whole road: cut, other sizes, a training step, a file."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import slimfast


class DirectedGate(nn.Module):
    """Pools along either side, mixes both in one narrow layer, and gates rows and columns apart."""

    def __init__(self, width, narrow):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(width, narrow, 1), nn.BatchNorm2d(narrow), nn.Hardswish())
        self.down, self.across = nn.Conv2d(narrow, width, 1), nn.Conv2d(narrow, width, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        sides = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = self.squeeze(sides).split([height, width], 2)
        return x * self.down(rows).sigmoid() * self.across(columns.transpose(2, 3)).sigmoid()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = (
            nn.Conv2d(3, 40, 3, padding=1),
            DirectedGate(40, 12),
            nn.Conv2d(40, 5, 1),
        )

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return self.head(y + self.gate(y))


class Anchored(nn.Module):
    """Heads over two scales with parameters that are added to channels and multiply outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 20, 3, 2, 1), nn.Conv2d(20, 36, 3, 2, 1)
        self.added = nn.ParameterList(nn.Parameter(torch.randn(1, n, 1, 1) * 0.02) for n in (20, 36))
        self.scaled = nn.ParameterList(nn.Parameter(torch.ones(1, 12, 1, 1)) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(n, 12, 1) for n in (20, 36))
        self.grids = [torch.zeros(1)] * 2

    def forward(self, x):
        first = F.silu(self.stem(x))
        maps, found = [first, F.silu(self.next(first))], []
        for i, y in enumerate(maps):
            maps[i] = self.scaled[i] * self.heads[i](self.added[i] + y)
            rows, columns = maps[i].shape[2:]
            self.grids[i] = torch.arange(rows)[:, None] * columns + torch.arange(columns)
            boxes = maps[i].view(len(x), 2, 6, rows, columns).sigmoid()
            found.append((boxes + self.grids[i]).flatten(3).transpose(2, 3).reshape(len(x), -1, 6))
        return torch.cat(found, 1)


class Scaled(nn.Module):
    """A norm along the channels with a weight for each, before one of two heads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 28, 3, padding=1), nn.Conv2d(28, 32, 3, padding=1)
        self.length = nn.Parameter(torch.full((28,), 10.0))
        self.heads = nn.ModuleList([nn.Conv2d(28, 4, 1), nn.Conv2d(32, 4, 1)])

    def forward(self, x):
        first = torch.relu(self.a(x))
        unit = (
            first
            / first.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-10)
            * self.length[None, :, None, None]
        )
        second = torch.relu(self.b(first))
        return torch.cat([h(y).flatten(2) for h, y in zip(self.heads, (unit, second), strict=True)], 2)


class Unrolled(nn.Module):
    """Steps of an iteration with filters of their own that are no modules, each used there and back."""

    def __init__(self, steps=3):
        super().__init__()
        self.there = nn.ParameterList(nn.Parameter(torch.randn(24, 1, 3, 3) * 0.2) for _ in range(steps))
        self.inner = nn.ParameterList(nn.Parameter(torch.randn(24, 24, 3, 3) * 0.05) for _ in range(steps))
        self.size = nn.ParameterList(nn.Parameter(torch.tensor(0.1)) for _ in range(steps))

    def forward(self, x, measured):
        for there, inner, size in zip(self.there, self.inner, self.size, strict=True):
            x = x - size * (x - measured)
            y = torch.relu(F.conv2d(F.conv2d(x, there, padding=1), inner, padding=1))
            x = x + F.conv_transpose2d(y, there, padding=1)
        return x


class Points(nn.Module):
    """Learns a transform of each cloud and of its features, and keeps the largest of all points."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 20, 1), nn.ReLU(), nn.Conv1d(20, 9, 1))
        self.first, self.second = nn.Conv1d(3, 24, 1), nn.Conv1d(24, 48, 1)
        self.norm, self.parts = nn.BatchNorm1d(48), nn.Conv1d(48 + 24, 6, 1)

    def forward(self, x):
        matrix = self.turn(x).amax(2).view(-1, 3, 3) + torch.eye(3)
        own = torch.relu(self.first(torch.bmm(matrix, x)))
        whole = self.norm(self.second(own)).amax(2, keepdim=True)
        return self.parts(torch.cat([own, whole.repeat(1, 1, x.shape[2])], 1))


class OddNorms(nn.Module):
    """Norms without statistics, one slope for all channels, a frozen filter, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.na, self.slope = (
            nn.Conv2d(3, 24, 3),
            nn.BatchNorm2d(24, track_running_stats=False),
            nn.PReLU(),
        )
        self.b, self.nb = nn.Conv2d(24, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.c, self.nc = nn.Conv2d(24, 18, 1, bias=False), nn.InstanceNorm2d(18, affine=True)
        self.head = nn.Linear(18, 4)
        self.c.weight.requires_grad_(False)

    def forward(self, x):
        x = self.slope(self.na(self.a(x)))
        x = x + self.b(torch.relu(self.nb(self.b(x))))
        return self.head(torch.relu(self.nc(self.c(x))).amax((2, 3)))


class ConvolvedMemory(nn.Module):
    """A gated memory of maps that starts from zeros of a width that an attribute holds."""

    def __init__(self, hidden=20):
        super().__init__()
        self.hidden, self.see = hidden, nn.Conv2d(2, 16, 3, padding=1)
        self.gates, self.new = (
            nn.Conv2d(16 + hidden, 2 * hidden, 3, padding=1),
            nn.Conv2d(16 + hidden, hidden, 3, padding=1),
        )
        self.tell = nn.Conv2d(hidden, 3, 1)

    def forward(self, frames):
        batch, steps, _, height, width = frames.shape
        state = frames.new_zeros(batch, self.hidden, height, width)
        for step in range(steps):
            seen = torch.relu(self.see(frames[:, step]))
            keep, reset = self.gates(torch.cat([seen, state], 1)).sigmoid().chunk(2, 1)
            made = torch.tanh(self.new(torch.cat([seen, reset * state], 1)))
            state = keep * state + (1 - keep) * made
        return self.tell(state)


class Modulated(nn.Module):
    """Filters that a style scales along their inputs, and one group of the convolution a sample."""

    def __init__(self, inside, outside, style=12):
        super().__init__()
        self.outside, self.weight = outside, nn.Parameter(torch.randn(outside, inside, 3, 3) * 0.1)
        self.style = nn.Linear(style, inside)

    def forward(self, x, style):
        count, inside, height, width = x.shape
        weight = self.weight[None] * self.style(style)[:, None, :, None, None]
        made = F.conv2d(
            x.reshape(1, count * inside, height, width),
            weight.reshape(count * self.outside, inside, 3, 3),
            padding=1,
            groups=count,
        )
        return made.reshape(count, self.outside, height, width)


class Styled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Modulated(4, 24), Modulated(24, 16), Modulated(16, 3)
        self.start = nn.Parameter(torch.randn(1, 4, 6, 6))

    def forward(self, style):
        x = self.start.expand(len(style), -1, -1, -1)
        for layer in (self.first, self.second):
            x = F.leaky_relu(layer(x, style), 0.2)
        return self.third(x, style)


class LowRank(nn.Module):
    """An adapter beside a frozen layer, whose rank one number of a configuration says for all."""

    def __init__(self, inside, outside, rank):
        super().__init__()
        self.base, self.r = nn.Linear(inside, outside), rank
        self.down, self.up = nn.Linear(inside, rank, bias=False), nn.Linear(rank, outside, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * (8 / self.r)


def _one_channel():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.PReLU(24), nn.Conv2d(24, 40, 3, padding=1),
        nn.BatchNorm2d(40), nn.Hardswish(inplace=True), nn.Conv2d(40, 1, 3, padding=1), nn.BatchNorm2d(1),
    )  # fmt: skip


def _adapted():
    return nn.Sequential(LowRank(10, 32, 4), nn.GELU(), LowRank(32, 32, 4), nn.GELU(), nn.Linear(32, 3))


# How each is made, its example, and other arguments that it takes.
ROADS = {
    "a gate along either side": (Gated, [(2, 3, 8, 6)], [(1, 3, 10, 12)]),
    "parameters beside the heads": (Anchored, [(2, 3, 16, 16)], [(1, 3, 32, 16)]),
    "a norm with a weight for each channel": (Scaled, [(2, 3, 8, 8)], [(3, 3, 6, 10)]),
    "filters that are no modules": (Unrolled, [(2, 1, 8, 8)] * 2, [(1, 1, 12, 6)] * 2),
    "clouds of points": (Points, [(2, 3, 15)], [(3, 3, 40)]),
    "odd norms and a layer used twice": (OddNorms, [(2, 3, 10, 10)], [(3, 3, 8, 14)]),
    "a memory of maps": (ConvolvedMemory, [(2, 3, 2, 6, 6)], [(1, 5, 2, 8, 4)]),
    "filters that a style makes": (Styled, [(1, 12)], [(1, 12)]),
    "one channel at the end": (_one_channel, [(2, 3, 8, 8)], [(1, 3, 12, 6)]),
    "adapters of low rank": (_adapted, [(5, 10)], [(2, 7, 10)]),
}


@pytest.mark.parametrize("name", ROADS)
def test_the_whole_road(name, tmp_path):
    make, shapes, others = ROADS[name]
    torch.manual_seed(0)
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    example, other = ([torch.randn(shape) for shape in each] for each in (shapes, others))
    plan = slimfast.plan(model, tuple(example), params=0.6)
    thin = slimfast.prune_channels(model, plan, example=tuple(example))
    count = sum(p.numel() for p in thin.parameters())
    assert count == plan.cost_after.params <= 0.6 * plan.cost_before.params
    for inputs in (example, other):
        assert thin(*inputs).shape == model(*inputs).shape
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    slimfast.save(thin, tmp_path / "thin.safetensors")
    again = slimfast.load(tmp_path / "thin.safetensors", make())
    torch.testing.assert_close(again.eval()(*other), thin(*other))
    thin.train()(*example).square().mean().backward()
    assert all(p.grad is not None for p in thin.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters())


def test_the_rank_of_adapters_stays_what_their_configuration_says():
    torch.manual_seed(0)
    model, example = _adapted().eval(), torch.randn(5, 10)
    thin = slimfast.slim(model, example, params=0.6)
    assert [layer.r for layer in (thin[0], thin[2])] == [4, 4]
    assert thin[0].down.out_features == thin[2].down.out_features == 4
    assert thin[0].base.out_features < 32


def test_again_and_again_down_to_a_layer_with_one_unit():
    torch.manual_seed(0)
    model, example = OddNorms().eval(), torch.randn(2, 3, 10, 10)
    counts = [sum(p.numel() for p in model.parameters())]
    for _ in range(3):
        model = slimfast.slim(model, example, params=0.6)
        counts.append(sum(p.numel() for p in model.parameters()))
    assert all(new <= 0.6 * old for old, new in itertools.pairwise(counts))
    last = slimfast.slim(model, example, params=1.0, overrides={"c": 1})
    assert last.c.out_channels == 1
    assert last(example).shape == (2, 4)
