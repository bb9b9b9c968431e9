"""A thin network can be trained, in whatever mode it was made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import slimfast
from slimfast.errors import SlimfastError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()


@pytest.mark.parametrize("made", ["outside", "inside"])
@pytest.mark.parametrize("verb", ["slim", "prune_channels"])
def test_what_was_pruned_in_inference_mode_can_be_trained(made: str, verb: str) -> None:
    net = network()
    with torch.inference_mode():
        if made == "inside":
            net = network()
        x = torch.randn(2, 3, 8, 8)
        if verb == "slim":
            thin = slimfast.slim(net, x, params=0.5)
        else:
            thin = slimfast.prune_channels(net, slimfast.plan(net, x, params=0.5))
        assert torch.is_inference_mode_enabled()
        expected = thin(x)
    assert not any(tensor.is_inference() for tensor in thin.state_dict().values())
    assert torch.equal(thin(x.clone()), expected)
    thin.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in thin.parameters())


def test_distillation_in_inference_mode() -> None:
    teacher = network()
    thin = slimfast.slim(teacher, torch.randn(1, 3, 8, 8), params=0.5)
    before = copy.deepcopy(thin)
    with torch.inference_mode():
        train = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
        slimfast.distill(thin, teacher=teacher, train=train, epochs=1)
        inner = network()
    with torch.no_grad():
        slimfast.distill(thin, teacher=teacher, train=train, evaluate=train, epochs=1)
    assert not torch.equal(before[0].weight, thin[0].weight)
    with pytest.raises(SlimfastError, match=r"the student's 0\.weight was made in inference mode"):
        slimfast.distill(inner, teacher=teacher, train=train, epochs=1)
    slimfast.distill(copy.deepcopy(inner), teacher=inner, train=train, epochs=1)
