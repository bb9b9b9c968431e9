"""A plan says at once what no forward shows: what a batch with targets would use, a training that fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast


class Detector(nn.Module):
    """Reads an embedding of the targets where it is given some, as RT-DETR does."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.classes = nn.Embedding(5, 16)

    def forward(self, x, targets=None):
        x = self.stem(x).relu()
        if targets is not None:
            x = torch.cat([x, self.classes(targets)])
        return self.head(x)


class Touching(Detector):
    """Shows the embedding to DistributedDataParallel where nothing uses it."""

    def forward(self, x, targets=None):
        out = super().forward(x, targets)
        return out + 0 * self.classes.weight.sum() if self.training and targets is None else out


class Strict(nn.Module):
    """Wants targets in training, as the detectors of torchvision do."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be None in training mode")
        out = self.head(self.stem(x).relu())
        return out if targets is None else out - targets


X, TARGETS = torch.randn(4, 6), torch.tensor([1, 3])
UNUSED = r"plan: classes\.weight is used by no forward that was seen.* is 16 wide as what stem makes, .*also="
FAILS = (
    r"plan: the training forward cannot be looked at with this example: .*targets should not be None.*also="
)


def _nested(network):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, *args):
            return self.net(*args)

    return Around().eval()


def test_a_parameter_that_nothing_shows_is_named_where_what_is_beside_it_is_cut():
    for kind in (Detector, Touching):
        with pytest.warns(UserWarning, match=UNUSED):
            slimfast.plan(kind().eval(), X, params=0.6)
    with pytest.warns(
        UserWarning, match=UNUSED.replace("classes", r"net\.classes").replace("what ", "what net.")
    ):
        slimfast.plan(_nested(Detector()), X, params=0.6)
    graph = slimfast.trace_channels(Detector().eval(), X)
    with pytest.warns(UserWarning, match=UNUSED):
        slimfast.plan_widths(graph, {}, overrides={"stem": 8})
    masked = Detector().eval()
    with torch.no_grad():
        masked.stem.weight[:4] = 0
    with pytest.warns(UserWarning, match=UNUSED):
        slimfast.plan_from_masks(masked, X)


def test_what_is_shown_or_left_whole_is_not_warned_of():
    """A warning is an error here."""
    for kind in (Detector, Touching):
        thin = slimfast.slim(kind().eval(), X, params=0.6, also=[(X, TARGETS)])
        assert thin.train()(X, TARGETS).shape == (6, 3)
        assert thin.classes.embedding_dim < 16
    slimfast.plan_widths(slimfast.trace_channels(Detector().eval(), X), {}, overrides={"stem": 16})
    other = Detector().eval()
    other.classes = nn.Embedding(5, 7)
    slimfast.plan(other, X, params=0.7)


def test_a_parameter_elsewhere_is_no_reason_for_a_warning():
    network = nn.ModuleDict({"used": nn.Linear(6, 16), "head": nn.Linear(16, 3)})

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = network, nn.ModuleDict({"a": nn.Linear(3, 4), "idle": nn.Linear(4, 16)})

        def forward(self, x):
            return self.second["a"](self.first["head"](self.first["used"](x).relu()))

    slimfast.plan(Apart().eval(), X, params=0.8)


def test_a_training_forward_that_fails_is_told_with_what_to_show():
    with pytest.warns(UserWarning, match=FAILS):
        slimfast.plan(Strict().eval(), X, params=0.6)
    plan = slimfast.plan(Strict().eval(), X, params=0.6, also=[(X, torch.zeros(4, 3))])
    assert plan.cost_after.params < plan.cost_before.params
    slimfast.plan_widths(slimfast.trace_channels(Strict().eval(), X), {}, overrides={"stem": 16})


def test_a_training_forward_that_decides_by_values_is_looked_at_with_data():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            y = self.a(x).relu()
            if self.training and float(x.square().sum()) > 0:
                return self.b(y), self.aux(y)
            return self.b(y)

    model = Asks().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = slimfast.plan(model, X, params=0.6)
    thin = slimfast.prune_channels(model, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert thin.aux.in_features == thin.a.out_features < 8
    assert [out.shape for out in thin.train()(X)] == [(4, 3), (4, 2)]
