"""What a verification reaches: other sizes and batches, random numbers, zeros, single precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.graph_cases import Net, conv
from support.pruning_cases import plan_of, random_keeps
from torch import nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.verification import verification_report, verify


def cut(model, x, keeps=None):
    model.eval()
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, 0) if keeps is None else keeps
    return prune_channels(model, plan_of(graph, keeps), verify=False), graph, keeps


def checked(model, x, keeps=None):
    thin, graph, keeps = cut(model, x, keeps)
    return verify(model, thin, graph, keeps, x)


def two_convs():
    return Net(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8, 3), b=conv(8, 2, 3))


@pytest.mark.parametrize(
    ("model", "x", "other", "note"),
    [
        (two_convs(), torch.randn(1, 3, 8, 8), ((2, 3, 4, 4),), None),
        (
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)),
            torch.randn(2, 6),
            ((3, 6),),
            "one size",
        ),
        (
            Net(lambda m, x: m.b(m.a(x).relu()) + m.c, a=conv(3, 8), b=conv(8, 2), c=torch.zeros(2, 2, 4, 4)),
            torch.randn(2, 3, 4, 4),
            (),
            "no other size or batch",
        ),
    ],
)
def test_another_size_and_batch_is_compared_where_the_original_takes_one(model, x, other, note):
    found = checked(model, x)
    assert found.other == other
    assert [note in line for line in found.notes] == ([True] if note else [])
    assert all(str(shape) in str(found) for shape in other)


def test_a_thin_network_that_is_right_at_one_size_only_is_found():
    """The forward shifts its result at any size but the example's, by how many channels there are."""

    def forward(m, x):
        f = m.a(x).relu()
        return m.b(f) + (0.0 if x.shape[-1] == 8 else 1e-6 * m.width)

    model = Net(forward, a=conv(3, 8, 3), b=conv(8, 2, 3))
    model.width = 8
    thin, graph, keeps = cut(model, torch.randn(1, 3, 8, 8))
    thin.width = 5
    with pytest.raises(SlimfastError, match=r"not the masked original.*with inputs of \(\(2, 3, 4, 4\),\)"):
        verify(model, thin, graph, keeps, torch.randn(1, 3, 8, 8))


def test_a_thin_network_that_fails_with_another_batch_is_found():
    def forward(m, x):
        return m.b(m.a(x).relu().reshape(len(x), m.width if len(x) > 1 else -1))

    model = Net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    model.width = 8
    thin, graph, keeps = cut(model, torch.randn(1, 3))
    thin.width = 8
    with pytest.raises(
        SlimfastError, match=r"the thin network's forward fails.*with inputs of \(\(2, 3\),\)"
    ):
        verify(model, thin, graph, keeps, torch.randn(1, 3))


RANDOM = {
    "dropout": lambda m, h: F.dropout(h, 0.5, training=True),
    "half of the channels": lambda m, h: F.dropout(h, 0.5, training=True)[:, :, None].sum(-1),
    "alpha dropout": lambda m, h: F.alpha_dropout(h, 0.3, training=True),
    "noise": lambda m, h: h + torch.randn_like(h),
    "noise by shape": lambda m, h: h + torch.randn(h.shape),
    "noise in place": lambda m, h: h * torch.empty_like(h).uniform_(0.5, 1.5),
    "chances": lambda m, h: h * torch.bernoulli(h.sigmoid()),
    "a number": lambda m, h: h * torch.rand(1),
    "one choice": lambda m, h: h[torch.randperm(len(h))],
    "two draws": lambda m, h: h * torch.rand(len(h), 1) + torch.rand_like(h),
}


@pytest.mark.parametrize("name", RANDOM)
def test_both_networks_see_the_same_random_numbers(name):
    model = Net(
        lambda m, x: m.c(m.b(RANDOM[name](m, m.a(x).relu())).relu()),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 12),
        c=nn.Linear(12, 3),
    )
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = checked(model, torch.ones(4, 8), {"a": np.array([1, 2, 7, 8, 15]), "b": np.array([0, 5, 6])})
    assert set(found.compared) == {"a", "b"}
    assert found.max_error < 1e-13
    assert any("random numbers" in note for note in found.notes)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrong_network_with_random_numbers_is_found():
    model = Net(
        lambda m, x: m.c(F.dropout(m.a(x), 0.5, training=True)), a=nn.Linear(8, 16), c=nn.Linear(16, 3)
    )
    thin, graph, keeps = cut(model, torch.ones(4, 8))
    thin.register_forward_hook(lambda module, args, output: 1.001 * output)
    with pytest.raises(SlimfastError, match="not the masked original"):
        verify(model, thin, graph, keeps, torch.ones(4, 8))


def test_numbers_that_cannot_be_drawn_alike_are_told():
    """What is drawn here depends on a mean for each unit, and on how many were drawn before."""
    model = Net(lambda m, x: m.c(m.draw(m.a(x))), a=nn.Linear(8, 16), c=nn.Linear(16, 3))
    model.draw = torch.relu
    thin, graph, keeps = cut(model, torch.ones(4, 8))
    model.draw = thin.draw = lambda h: torch.poisson(h.exp())
    with pytest.raises(SlimfastError, match=r"draws numbers of a shape that is cut.*verify=False"):
        verify(model, thin, graph, keeps, torch.ones(4, 8))


def test_numbers_of_a_generator_of_the_models_own_are_left_whole():
    """They are the same in every call, so that fewer of them would be others."""

    def forward(m, x):
        h = m.a(x)
        return m.c(h + torch.randn(h.shape, generator=m.generator).to(h.device))

    model = Net(forward, a=nn.Linear(8, 16), c=nn.Linear(16, 3))
    model.generator = torch.Generator()
    assert len(trace_channels(model.eval(), torch.ones(4, 8))) == 0


def test_zeros_that_hide_a_branch_are_shaken():
    """The branch is multiplied by 0, so that nothing it computes is seen."""

    def forward(m, x):
        return m.c(m.a(x)) + m.scale * m.d(m.b(x).relu())

    def build(eps):
        torch.manual_seed(0)
        return Net(
            forward,
            a=nn.Linear(4, 6),
            b=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps=eps)),
            c=nn.Linear(6, 3),
            d=nn.Linear(8, 3),
            scale=nn.Parameter(torch.zeros(3)),
        )

    model, x = build(1e-5).eval(), torch.randn(2, 4)
    thin, graph, keeps = cut(model, x)
    found = verify(model, thin, graph, keeps, x)
    assert any("1 parameters are all 0" in note and "scale" in note for note in found.notes)
    assert float(model.scale.detach().abs().max()) == float(thin.scale.detach().abs().max()) == 0.0
    thin.b[1].eps = 0.5
    with pytest.raises(SlimfastError, match="not the masked original"):
        verify(model, thin, graph, keeps, x)


def test_an_output_of_zeros_is_told():
    model = Net(lambda m, x: m.b(m.a(x).relu()) * 0, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    assert any("proves nothing" in note for note in checked(model, torch.randn(2, 4)).notes)


@pytest.fixture(scope="module")
def single():
    """An operation that is written for float32 only."""

    @torch.library.custom_op("slimfast_test::double_it", mutates_args=())
    def double_it(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError(f'"double_it" not implemented for {x.dtype}')
        return 2 * x

    @double_it.register_fake
    def _(x):
        return torch.empty_like(x)

    return double_it


def test_an_operation_without_a_kernel_for_float64_runs_in_float32(single):
    model = Net(lambda m, x: single(m.b(m.a(x).relu())), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    found = checked(model, torch.randn(2, 4))
    assert found.dtype == "float64"
    assert 1e-7 < found.tolerance < 1e-3
    assert any("double_it has no kernel for float64 here and ran in float32" in note for note in found.notes)


class Detector(nn.Module):
    """Rows whose score is above a bound, in the order of their scores."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        rows = self.b(self.a(x).relu())
        kept = rows[rows[:, 0] > 0]
        return kept[kept[:, 0].argsort(descending=True)]


def test_rows_that_values_choose_are_compared_row_by_row():
    model, x = Detector().eval(), torch.randn(60, 4)
    graph = trace_channels(model, x)
    keeps = {"a": np.array([0, 1, 2, 4, 6, 7])} if len(graph) else {}
    for change in (lambda out: out[1:], lambda out: out.flip(0), lambda out: out[: len(out) // 2]):
        thin = prune_channels(model, plan_of(graph, keeps), verify=False)
        assert verify(model, thin, graph, keeps, x).max_error < 1e-12
        thin.register_forward_hook(lambda module, args, output, change=change: change(output))
        with pytest.raises(SlimfastError, match="not the masked original"):
            verify(model, thin, graph, keeps, x)


def test_what_was_found_stays_with_the_thin_network():
    model, x = two_convs().eval(), torch.randn(1, 3, 8, 8)
    plan = slimfast.plan(model, x, params=0.6)
    thin = slimfast.prune_channels(model, plan)
    assert verification_report(thin).other == ((2, 3, 4, 4),)
    again = slimfast.prune_channels(thin, slimfast.plan(thin, x, params=0.8), verify=False)
    with pytest.raises(SlimfastError, match="Net: it was not verified"):
        verification_report(again)


def test_what_an_earlier_call_left_is_named_where_the_thin_network_fails():
    """A cache of the frame before, which is as wide as the wide network."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        before = getattr(self, "frame", None)
        fits = before is not None and len(before) == len(h) and before.shape[2:] == h.shape[2:]
        self.frame, before = h.detach(), before if fits else torch.zeros_like(h)
        return self.b(torch.cat([h, before], 1))

    model, x = Net(forward, a=conv(3, 16, 3), b=conv(32, 4, 3)).eval(), torch.randn(1, 3, 8, 8)
    model(x)
    with pytest.raises(SlimfastError, match="where frame is left of an earlier call, clear it before"):
        slimfast.slim(model, x, params=0.5)
    model.frame = None
    thin = slimfast.slim(model, x, params=0.5)
    for inputs in (x, x, torch.randn(2, 3, 8, 8)):
        assert thin(inputs).shape == model(inputs).shape
