"""Writes by position, choices by the input and mixtures of experts, whose hidden units and stream are cut."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps, reasons, summary
from torch import Tensor, nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify

EXPERTS = 3


def _check_cuts(model: nn.Module, example: Tensor) -> dict[str, tuple[str, int]]:
    """Random cuts run as predicted, with other batches too, and are the masked network; the groups."""
    model = model.double().eval()
    graph = trace_channels(model, example)
    for seed in range(3):
        keeps = random_keeps(graph, seed)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        done = verify(model, thin, graph, keeps, example)
        assert (set(done.compared), done.inexact) == (set(keeps), {})
        assert done.max_error < 1e-13
        for batch in (1, 7):
            assert thin(example[:1].repeat(batch, *[1] * (example.ndim - 1))).shape[0] == batch
    return summary(graph)


class Mixture(nn.Module):
    """A stream, a gate, experts with hidden units and an answer; ``mix`` sends the tokens through them."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.inp, self.gate, self.out = nn.Linear(5, 8), nn.Linear(8, EXPERTS), nn.Linear(8, 4)
        torch.manual_seed(0)
        self.up, self.down = (
            nn.Parameter(torch.randn(EXPERTS, 8, 12)),
            nn.Parameter(torch.randn(EXPERTS, 12, 8)),
        )
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        weight, expert = self.gate(x).softmax(-1).max(-1)
        return self.out(x + self.mix(self, x, expert) * weight[:, None])

    def one(self, i: int, x: Tensor) -> Tensor:
        return (x @ self.up[i]).relu() @ self.down[i]


def chosen_weights(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    hidden = torch.bmm(x[:, None], m.up[expert]).relu()
    return torch.bmm(hidden, m.down.index_select(0, expert))[:, 0]


def one_hot(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    chosen = F.one_hot(expert, EXPERTS).to(x.dtype)
    return torch.einsum("be,bed->bd", chosen, torch.stack([m.one(i, x) for i in range(EXPERTS)], 1))


def scattered_gate(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    chosen = torch.zeros(len(x), EXPERTS, dtype=x.dtype, device=x.device).scatter(1, expert[:, None], 1.0)
    hidden = torch.einsum("bd,edh->beh", x, m.up).relu()
    return torch.einsum("beh,ehd,be->bd", hidden, m.down, chosen)


def scattered_tokens(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    order = expert.argsort()
    y = sum(m.one(i, x[order]) * (expert[order] == i)[:, None] for i in range(EXPERTS))
    return torch.zeros_like(y).scatter(0, order[:, None].expand_as(y), y)


def added_tokens(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    order, y = expert.argsort(), torch.zeros_like(x)
    for i in range(EXPERTS):
        y.index_add_(0, order, m.one(i, x[order]) * (expert[order] == i)[:, None])
    return y


def put_tokens(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    order, y = expert.argsort(), torch.zeros_like(x)
    y[order] = sum(m.one(i, x[order]) * (expert[order] == i)[:, None] for i in range(EXPERTS))
    return y


def copied_tokens(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    order = expert.argsort()
    y = sum(m.one(i, x[order]) * (expert[order] == i)[:, None] for i in range(EXPERTS))
    return torch.zeros_like(y).index_copy(0, order, y)


@pytest.mark.parametrize(
    "mix",
    [chosen_weights, one_hot, scattered_gate, scattered_tokens, added_tokens, put_tokens, copied_tokens],
)
def test_hidden_units_of_experts_and_their_stream_are_cut(mix):
    groups = _check_cuts(Mixture(mix), torch.randn(6, 5, dtype=torch.float64))
    assert groups == {"inp[residual]": ("residual", 8), "up": ("channel", 12)}


class Written(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.write(self.a(x), self.b(x), x))


def _masked_rows(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    a[x.sum(-1) > 0] = 0.0
    return a + b


def _rows(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    a[:, torch.tensor([0, 2])] = b[:, torch.tensor([2, 1])]
    return a


def _kept_rows(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (a + b)[x.sum(-1) > -1e9].reshape(x.shape[0], -1, a.shape[-1])


@pytest.mark.parametrize("write", [_masked_rows, _rows, _kept_rows])
def test_rows_written_and_masks_over_rows_leave_the_channels_free(write):
    assert [n for _, n in _check_cuts(Written(write), torch.randn(7, 3, 4).double()).values()] == [8]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda a, b, x: a.index_fill(2, torch.tensor([1]), 0.0) + b, "aten.index_fill looks it up by value"),
        (lambda a, b, x: a.index_fill(1, torch.tensor([1]), 1.0) + b, "aten.index_fill"),
        (lambda a, b, x: a.scatter(2, x.argsort(2), x) + b, "aten.scatter looks it up by value"),
        (lambda a, b, x: a.masked_scatter(a > 0, b), "aten.masked_scatter"),
        (lambda a, b, x: (a + b)[a > -1e9].reshape(a.shape), "aten.index takes a part of it"),
        (lambda a, b, x: a.index_put((a > 0,), x.sum()) + b, "aten.index_put takes a part of it"),
    ],
)
def test_a_write_along_the_channels_freezes_them_and_says_so(write, reason):
    graph = trace_channels(Written(write).eval(), torch.randn(2, 3, 4), settle=False)
    assert len(graph) == 0
    assert reason in reasons(graph)["a.weight", 0]


def test_axes_along_which_nothing_is_mixed_pass_a_fourier_transform():
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.filter = nn.Parameter(torch.randn(8, 6, 4, 2))

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft2(self.a(x)) * torch.view_as_complex(self.filter)
            return self.c(torch.fft.irfft2(spectrum, s=x.shape[-2:]))

    assert _check_cuts(Filter(), torch.randn(7, 3, 6, 6).double()) == {"a": ("channel", 8)}


def test_complex_weights_make_no_units_and_say_so():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(4, 8), nn.Linear(6, 2)
            self.w = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.c((self.a(x).to(self.w.dtype) @ self.w).abs())

    graph = trace_channels(Complex(), torch.randn(2, 4))
    assert summary(graph) == {"a": ("channel", 8)}
    assert reasons(graph)["w", 1] == {"its elements are torch.complex64, of which no spectrum is made"}


def grouped_product(m: Mixture, x: Tensor, expert: Tensor) -> Tensor:
    """Rows sorted by expert, and where those of each end, as transformers' experts have them."""
    order = expert.argsort()
    ends = torch.histc(expert.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
    hidden = F.grouped_mm(x[order], m.up, offs=ends).relu()
    made = F.grouped_mm(hidden, m.down, offs=ends)
    return made[order.argsort()]


def test_a_grouped_product_is_cut_in_the_multiples_that_it_wants():
    """It has no kernel for float64, and wants rows of 16 bytes."""
    torch.manual_seed(2)
    model, x = Mixture(grouped_product).eval(), torch.randn(6, 5)
    graph = trace_channels(model, x)
    assert summary(graph) == {"inp[residual]": ("residual", 8), "up": ("channel", 12)}
    # 6 rows, each times 8 x 12 and 12 x 8
    macs = sum(math.prod(map(_length, op.macs)) for op in graph.operations if "_grouped_mm" in op.name)
    assert macs == 2 * 6 * 8 * 12
    plan = slimfast.plan_widths(graph, {}, overrides={"inp*": 4, "up": 8})
    thin = slimfast.prune_channels(model, plan, example=x)
    report = slimfast.verification_report(thin)
    assert report.compared == ("inp[residual]", "up")
    assert "aten._grouped_mm has no kernel for float64 here and ran in float32" in str(report)
    assert thin(x).shape == (6, 4)
    odd = slimfast.plan_widths(graph, {}, overrides={"inp*": 4, "up": 7})
    with pytest.raises(
        SlimfastError, match=r"the thin network's forward fails: .*16.*multiple_of=16 may help"
    ):
        slimfast.prune_channels(model, odd, example=x)


def _length(factor) -> int:
    return getattr(factor, "length", factor)
