"""What values decide is decided once for both networks, and it shows where they would decide otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pruning_cases import plan_of
from torch import Tensor, nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.network import Network
from slimfast.pruning.closeness import difference
from slimfast.pruning.precision import Precision, run_copy
from slimfast.pruning.random_draws import Draws
from slimfast.pruning.training_forward import TrainingBreaks, compare_training
from slimfast.pruning.value_choices import Choices

KEEPS = np.array([0, 1, 2, 4, 6, 7])


class Net(nn.Module):
    """Two layers, and a choice of their rows: by a score that is 1 for all but for rounding."""

    def __init__(self, choose) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        rows = self.b(self.a(x).relu())
        # the last bits of a number, which are rounding
        noise = (rows[:, 0] * 2.0**50).frac()
        return self.choose(rows, 1.0 + 1e-15 * noise)


def by_order(rows: Tensor, score: Tensor) -> Tensor:
    return rows[score.argsort(descending=True)]


def by_top(rows: Tensor, score: Tensor) -> Tensor:
    value, at = score.topk(7)
    return rows[at] * value[:, None]


def by_greatest(rows: Tensor, score: Tensor) -> Tensor:
    value, at = score.reshape(6, -1).max(1)
    return rows.reshape(6, -1, 3)[torch.arange(6), at] * value[:, None]


def by_place(rows: Tensor, score: Tensor) -> Tensor:
    return rows[score.argmax()]


CHOICES = {"order": by_order, "top": by_top, "greatest": by_greatest, "place": by_place}


def thin_of(model: nn.Module, x: Tensor) -> tuple[nn.Module, slimfast.ChannelGraph]:
    graph = slimfast.trace_channels(model, x)
    return slimfast.prune_channels(model, plan_of(graph, {"a": KEEPS}), verify=False), graph


@pytest.mark.parametrize("choose", CHOICES)
def test_an_order_that_rounding_decides_is_that_of_the_original(choose):
    model, x = Net(CHOICES[choose]).eval(), torch.randn(60, 4)
    thin, graph = thin_of(model, x)
    assert slimfast.verify(model, thin, graph, {"a": KEEPS}, x).max_error < 1e-12


def test_that_it_was_the_originals_is_said():
    model, x = Net(by_order).eval(), torch.randn(200, 4)
    thin, graph = thin_of(model, x)
    found = slimfast.verify(model, thin, graph, {"a": KEEPS}, x)
    assert any("both got what the original chooses by values (aten.sort" in note for note in found.notes)


@pytest.mark.parametrize("choose", CHOICES)
def test_a_network_that_chooses_by_something_else_is_refused(choose):
    """What is chosen by must agree as well: with the original's choice the rows would be right."""
    model, x = Net(lambda rows, _: CHOICES[choose](rows, rows[..., 0])).eval(), torch.randn(60, 4)
    thin, graph = thin_of(model, x)
    assert slimfast.verify(model, thin, graph, {"a": KEEPS}, x).max_error < 1e-12
    thin.choose = lambda rows, _: CHOICES[choose](rows, -rows[..., 0])
    with pytest.raises(SlimfastError, match="not the masked original"):
        slimfast.verify(model, thin, graph, {"a": KEEPS}, x)


class Bound(nn.Module):
    """Keeps rows at or above a bound."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        rows = self.b(self.a(x).relu())
        return rows[rows[:, 0] >= self.bound]


def on_the_bound(x: Tensor) -> float:
    """A score that the masked original reaches and the thin network does not, for rounding."""
    model = Bound(-1e9).eval()
    thin, _ = thin_of(model, x)
    gone = np.setdiff1d(np.arange(8), KEEPS)
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):
            tensor[gone] = 0
        model.b.weight[:, gone] = 0
        wide, narrow = model(x)[:, 0], thin(x)[:, 0]
    return float(wide[(narrow < wide).nonzero()[0, 0]])


def test_a_row_on_the_bound_is_where_the_original_has_it():
    x = torch.randn(400, 4, dtype=torch.float64)
    model = Bound(on_the_bound(x)).eval()
    thin, graph = thin_of(model, x)
    found = slimfast.verify(model, thin, graph, {"a": KEEPS}, x)
    assert found.max_error < 1e-12
    assert any("chooses 1 of " in note for note in found.notes)


class Features(Bound):
    """Keeps rows of what is cut, and marks the others in a tensor of integers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x).relu()
        kept = self.b(h)[:, 0] >= self.bound
        marks = torch.arange(len(x))
        marks[~kept] = -1
        return self.b(h[kept]), marks


def test_rows_of_what_is_cut_and_marks_are_those_of_the_original():
    x = torch.randn(400, 4, dtype=torch.float64)
    model = Features(on_the_bound(x)).eval()
    thin, graph = thin_of(model, x)
    found = slimfast.verify(model, thin, graph, {"a": KEEPS}, x)
    assert found.max_error < 1e-12
    assert any("both got what the original chooses by values" in note for note in found.notes)


def test_many_rows_on_the_other_side_are_refused():
    x = torch.randn(400, 4, dtype=torch.float64)
    model = Bound(0.0).eval()
    thin, graph = thin_of(model, x)
    thin.bound = 0.2
    with pytest.raises(SlimfastError, match="not the masked original"):
        slimfast.verify(model, thin, graph, {"a": KEEPS}, x)


class Sizes(nn.Module):
    """Asks for the values of what it computes, and takes any size and batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        step = 2 + int((h.sum() * 0).item())
        return self.b(h)[..., ::step, ::step]


def test_another_size_is_found_for_a_network_that_asks_for_values():
    model, x = Sizes().eval(), torch.randn(2, 3, 16, 16)
    state = torch.get_rng_state()
    graph = slimfast.trace_channels(model, x)
    thin = slimfast.prune_channels(model, plan_of(graph, {"a": KEEPS}), example=x)
    found = slimfast.verification_report(thin)
    assert found.other == ((3, 3, 8, 8),)
    assert found.training is None
    assert torch.equal(torch.get_rng_state(), state)


class Trained(nn.Module):
    """Chooses by values, in training mode more than in eval mode, and moves a parameter as momentum does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.aux = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.drop(self.a(x).relu())
        rows = self.b(h)
        rows = rows[rows[:, 0] > 0]
        if not self.training:
            return rows
        with torch.no_grad():
            self.aux.bias.mul_(0.5)
        return rows, self.aux(h)[(h.sum(1) > 1).nonzero()[:, 0]]


def test_a_training_forward_that_decides_by_values_is_compared():
    model, x = Trained().eval(), torch.randn(20, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    graph = slimfast.trace_channels(model, x)
    thin = slimfast.prune_channels(model, plan_of(graph, {"a": KEEPS}), example=x)
    assert slimfast.verification_report(thin).training is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    thin.aux = nn.Linear(6, 5)
    with pytest.raises(TrainingBreaks, match="in training mode expected outputs of shapes"):
        compare_training(Network.of(model), Network.of(thin), ((x,), {}))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from(sorted(CHOICES)))
def test_a_run_that_takes_choices_is_the_run_that_made_them(seed, width, choose):
    """For the same inputs; for others what was chosen by is seen to be something else."""
    x = torch.randn(6 * width, 4, generator=torch.Generator().manual_seed(seed))
    model = Net(lambda rows, _: CHOICES[choose](rows, rows[..., 0])).eval()
    choices = Choices()
    draws = Draws(Cut(slimfast.trace_channels(model, x), {}))
    precision = Precision(torch.float64, draws, choices)
    choices.begin("note")
    first = run_copy(model, ((x,), {}), precision)
    choices.begin("take")
    assert difference(first, run_copy(model, ((x,), {}), precision)) == 0.0
    assert (choices.error, choices.flips) == (0.0, 0)
    assert choices.names
    choices.begin("take")
    moved = run_copy(model, ((-x,), {}), precision)
    assert choices.error > 1e-3
    assert moved.shape == first.shape
