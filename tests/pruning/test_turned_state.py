"""Optimizers across a rotation of heads: their state is of the weights that they moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.pruning.training_state import prune_optimizer

EXAMPLE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """One attention with four heads of four, scaled by a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (f(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.head(x + self.o(out.transpose(1, 2).flatten(2)))


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters),
}


def rotated(model):
    graph = slimfast.trace_channels(model, EXAMPLE)
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(8, 5, 8, generator=generator) for _ in range(2)]
    found = slimfast.rotate_heads(model, EXAMPLE, calibration=slimfast.calibrate(model, graph, batches))
    assert slimfast.manifest(found).moved
    return found


def step(model, optimizer):
    optimizer.zero_grad()
    model(EXAMPLE).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_the_weights_before_a_rotation_is_refused(kind):
    model = Net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, optimizer)
    turned = rotated(model)
    thin = slimfast.slim(turned, EXAMPLE, params=0.7)
    for after in (turned, thin):
        with pytest.raises(slimfast.SlimfastError, match="heads that were rotated after this") as caught:
            prune_optimizer(optimizer, model, after)
        assert "\n" not in str(caught.value)


def test_an_optimizer_without_state_and_one_made_after_the_rotation_go_on():
    model = Net()
    turned = rotated(model)
    thin = slimfast.slim(turned, EXAMPLE, params=0.7)
    fresh = prune_optimizer(torch.optim.Adam(model.parameters()), model, thin)
    step(thin, fresh)
    optimizer = torch.optim.Adam(turned.parameters())
    step(turned, optimizer)
    plan = slimfast.plan(turned, EXAMPLE, params=0.7)
    thin, made = slimfast.prune_channels(turned, plan, optimizer=optimizer)
    for name, parameter in turned.named_parameters():
        expected = optimizer.state[parameter]["exp_avg"]
        for dim, keep in slimfast.manifest(thin).keeps.get(name, {}).items():
            expected = expected.index_select(dim, torch.as_tensor(keep.copy()))
        assert torch.equal(made.state[thin.get_parameter(name)]["exp_avg"], expected), name
    step(thin, made)
