"""What a forward leaves out in eval mode: auxiliary classifiers follow the cut of what they read."""

from __future__ import annotations

import pytest
import torch
from support.graph_helpers import members, reasons, roles, summary
from torch import Tensor, nn

import slimfast
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.graph import trace_channels

TRAINING_ONLY = "it is used in training only"


class WithAuxiliary(nn.Module):
    """``refuse``: what the training forward raises."""

    def __init__(self, refuse: Exception | None = None) -> None:
        super().__init__()
        self.refuse = refuse
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        self.aux = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 4))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        if not self.training:
            return y
        if self.refuse is not None:
            raise self.refuse
        return y, self.aux(x)


def test_an_auxiliary_head_reads_what_is_left_and_stays_whole_itself() -> None:
    graph = trace_channels(WithAuxiliary(), torch.rand(2, 3))
    assert summary(graph) == {"a": ("channel", 8), "b": ("channel", 6)}
    assert members(graph["a"])["aux.0.weight", 1] == list(range(8))
    assert roles(graph["a"])["aux.0.weight", 1] == "consumer"
    told = reasons(graph)
    assert told["aux.0.weight", 0] == told["aux.3.weight", 1] == {TRAINING_ONLY}
    # a forward costs what it costs in eval mode
    assert [op.module for op in graph.operations if op.macs] == ["a", "b", "head"]


def test_a_pruned_network_with_an_auxiliary_head_trains() -> None:
    model = WithAuxiliary()
    graph = trace_channels(model, torch.rand(2, 3))
    plan = slimfast.plan_widths(graph, {}, overrides={"*": 0.5})
    thin = slimfast.prune_channels(model, slimfast.select(model, plan)).train()
    assert thin.aux[0].weight.shape == (7, 4)
    y, aux = thin(torch.rand(2, 3))
    (y.sum() + aux.sum()).backward()
    assert all(p.grad is not None for p in thin.parameters())


def test_a_training_forward_that_fails_is_told_with_the_parameters_it_hides() -> None:
    graph = trace_channels(WithAuxiliary(ValueError("too small for that")), torch.rand(2, 3))
    assert summary(graph) == {"a": ("channel", 8), "b": ("channel", 6)}
    (reason,) = reasons(graph)["aux.0.weight", 1]
    assert reason.startswith("it is left out in eval mode, and in training mode the forward failed in")
    assert reason.endswith("too small for that")


def test_parameters_that_no_mode_uses_change_nothing_and_are_told() -> None:
    model = WithAuxiliary()
    model.spare = nn.Linear(8, 8)
    model.token = nn.Parameter(torch.zeros(1, 1, 8))
    graph = trace_channels(model, torch.rand(2, 3))
    assert summary(graph) == {"a": ("channel", 8), "b": ("channel", 6)}
    for idle in (("spare.weight", 1), ("token", 2)):
        assert reasons(graph)[idle] == {"the forward does not use it with this example"}
    assert {f.module for f in graph.frozen if f.tensor == "spare.weight"} == {"spare"}


class Branching(nn.Module):
    """Which of two layers runs depends on the input's values; another reads what either makes."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.seldom, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.seldom(x) if x.sum() > 1e6 else self.often(x)).relu())


def test_the_branch_that_the_example_does_not_take_is_told() -> None:
    graph = trace_channels(Branching(), torch.rand(2, 4))
    assert summary(graph) == {"often": ("channel", 8)}
    for dim in (0, 1):
        assert reasons(graph)["seldom.weight", dim] == {"the forward does not use it with this example"}
    assert not any(tensor == "often.weight" and dim == 0 for tensor, dim in reasons(graph))


def test_googlenet_trains_after_pruning() -> None:
    prepare_torchvision()
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.googlenet(num_classes=5, init_weights=False).eval()
    graph = trace_channels(model, torch.rand(1, 3, 64, 64))
    readers = {tensor for group in graph for (tensor, _), role in roles(group).items() if role == "consumer"}
    assert {"aux1.conv.conv.weight", "aux2.conv.conv.weight"} <= readers
    plan = slimfast.plan_widths(graph, {}, overrides={"*": 0.5})
    thin = slimfast.prune_channels(model, slimfast.select(model, plan), verify=False).train()
    outputs = thin(torch.rand(2, 3, 64, 64))
    sum(output.sum() for output in outputs).backward()
    assert all(p.grad is not None for p in thin.parameters())
