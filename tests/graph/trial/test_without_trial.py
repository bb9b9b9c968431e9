"""Which networks need no trial cut, and that a trial would find nothing in them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import trace_example
from torch import Tensor, nn

from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.forward import Recording, record
from slimfast.graph.recording.network import Network
from slimfast.graph.trial.candidates import Layout, named_alike
from slimfast.graph.trial.origins import Origins
from slimfast.graph.trial.runner import Trial, TrialRunner
from slimfast.graph.trial.search import AttributeSearch
from slimfast.graph.trial.trial_cut import inexact_groups
from slimfast.graph.trial.trial_widths import trial_keeps
from slimfast.graph.trial.without_trial import attributes_without_trial


class Block(nn.Module):
    """Depthwise, grouped and squeezed, around a shortcut."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.norm = Norm(c)
        self.grouped = nn.Conv2d(c, c, 1, groups=4)
        self.gate = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.grouped(self.norm(self.depthwise(x))))
        return x + y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()


class Norm(nn.BatchNorm2d):
    """Calls the function with what it holds."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "four axes")
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, self.momentum, self.eps)


class LastNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Calls(nn.Module):
    """What a function makes of a tensor of 8 channels, which a layer reads."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.function, self.width = function, width
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


class Halving(nn.ReLU):
    """A layer with a forward of its own, in a class that PyTorch wrote the base of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / math.sqrt(64)


CERTAIN = {
    "blocks": nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), Norm(8), nn.ReLU6(True), Block(8), Block(8),
        nn.MaxPool2d(2), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ),
    "norms": nn.Sequential(
        nn.Conv2d(3, 8, 1), LastNorm(8), nn.GELU(), nn.Conv2d(8, 6, 1), nn.LeakyReLU(0.2), nn.Flatten(2),
        nn.Linear(16, 5),
    ),
    "dense": Calls(lambda self, x: torch.cat([x, torch.relu(x)], 1).flatten(1, 1)[:, :]),
}  # fmt: skip
CERTAIN["dense"].last = nn.Conv2d(16, 5, 1)

UNCERTAIN = {
    "a size": lambda self, x: x.view(2, 8, 4, 4),
    "a size beside another": lambda self, x: x.reshape(-1, 4).view(2, self.width, 4, 4),
    "a length it was told": lambda self, x: x + (x.shape[1] > 64),
    "a length that is checked": lambda self, x: x if x.size(1) == 8 else None,
    "a length counted": lambda self, x: x if len(x[0]) == 8 else None,
    "a number of elements": lambda self, x: x if x.numel() == 256 else None,
    "a factor": lambda self, x: x / math.sqrt(self.width),
    "a layer's factor": lambda self, x: x * self.first.out_channels**-0.5,
    "a term": lambda self, x: x + 8,
    "a multiple": lambda self, x: x.add(x, alpha=self.width),
    "a group norm": lambda self, x: F.group_norm(x, 8),
    "a slope": lambda self, x: F.leaky_relu(x, 1 / self.width),
    "parts": lambda self, x: torch.cat(x.split(4, 1), 1),
    "a selection": lambda self, x: torch.cat([x[:, :4], x[:, 4:]], 1),
    "zeros": lambda self, x: x + torch.zeros(8, 1, 1),
    "padding": lambda self, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)),
    "a loop over positions": lambda self, x: torch.stack(list(x)),
}


def _all(model: nn.Module) -> tuple[ChannelGraph, dict | None, Recording, Network]:
    x = torch.randn(2, 3, 4, 4)
    network = Network.of(model.eval())
    graph, recording = trace_example(model, x), record(network, (x,), {})
    return graph, attributes_without_trial(graph, network.modules, recording), recording, network


@pytest.mark.parametrize("name", CERTAIN)
def test_a_trial_finds_nothing_where_none_is_needed(name):
    graph, certain, recording, network = _all(CERTAIN[name])
    assert certain is not None
    assert len(graph) > 0
    runner, layout = (
        TrialRunner(network, recording, graph.inputs.example()),
        Layout.of(network.modules, graph),
    )
    trial = Trial(Cut(graph, trial_keeps(graph)), named_alike(graph, network.modules))
    settlement = AttributeSearch(runner, layout, Origins(graph), trial).run(runner.run(trial))
    assert certain == settlement.trial.attributes
    assert not settlement.uncuttable
    assert not inexact_groups(settlement, recording.calls, runner, layout)
    assert settlement.trial.cut.graph is graph


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_a_width_may_hide_in_takes_the_trial(name):
    graph, certain, *_ = _all(Calls(UNCERTAIN[name]))
    assert len(graph) > 0
    assert certain is None


def test_layers_whose_forward_was_replaced_take_the_trial():
    layer = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 5, 1))
    assert _all(model)[1] is not None
    layer.forward = lambda x: F.relu(x) / 8
    assert _all(model)[1] is None
    model[1] = Halving()
    assert _all(model)[1] is None


def test_what_a_hook_does_takes_the_trial():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    assert _all(model)[1] is not None
    model[1].register_forward_hook(lambda module, args, output: output / 8)
    assert _all(model)[1] is None


def test_one_attribute_for_two_widths_takes_the_trial():
    first, second = nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 1, groups=8)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), first, nn.Conv2d(8, 8, 1), second, nn.Conv2d(8, 5, 1))
    assert _all(model)[1] is not None

    class Both(nn.Module):
        """One module that filters channels of two layers by weights that are theirs."""

        def __init__(self) -> None:
            super().__init__()
            self.groups = 8
            self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 5, 1)
            self.a, self.b = (nn.Parameter(torch.randn(8, 1, 1, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            a = F.conv2d(self.first(x), self.a, groups=self.groups)
            return self.last(torch.cat([a, F.conv2d(self.second(x), self.b, groups=self.groups)], 1))

    assert _all(Both())[1] is None


def test_the_attributes_are_those_of_the_graph():
    model = CERTAIN["blocks"].eval()
    graph = trace_channels(model, torch.randn(2, 3, 4, 4))
    assert {(a.module, a.name) for a in graph.attributes or ()} == {
        (f"{block}.{layer}", "groups") for block in (3, 4) for layer in ("depthwise", "grouped")
    }
