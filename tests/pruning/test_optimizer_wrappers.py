"""Optimizers that hold another one go through a prune with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.pruning.prune import prune_channels


class Sharing(torch.optim.Optimizer):
    """Has the groups and the state of the one inside, as SAM does."""

    def __init__(self, params: Any, **wishes: Any) -> None:
        super().__init__(params, wishes)
        self.inner = torch.optim.SGD(self.param_groups, **wishes)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Lookahead(torch.optim.Optimizer):
    """Is made of one, and keeps slow weights in a state of its own (Zhang et al. 2019)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.parts = {"inner": inner}
        super().__init__(inner.param_groups, {})

    def step(self, closure: Any = None) -> None:
        self.parts["inner"].step()
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)


class Aside(Sharing):
    """Keeps tensors of the parameters' shapes where nobody knows whose they are."""

    def __init__(self, params: Any, **wishes: Any) -> None:
        super().__init__(params, **wishes)
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]


def accelerated(params: Any, **wishes: Any) -> torch.optim.Optimizer:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare_optimizer(torch.optim.SGD(params, **wishes))


WRAPPERS: dict[str, Any] = {
    "sharing": Sharing,
    "lookahead": lambda params, **wishes: Lookahead(torch.optim.SGD(params, **wishes)),
    "twice": lambda params, **wishes: Lookahead(Sharing(params, **wishes)),
    "accelerate": accelerated,
}


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)), torch.randn(4, 8)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) * torch.arange(12).reshape(4, 3).cos()).sum().backward()
    optimizer.step()


def thinned(make: Any) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, torch.optim.Optimizer, Tensor]:
    model, x = network()
    optimizer = make(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        step(model, optimizer, x)
    thin, made = prune_channels(model, slimfast.plan(model, x, params=0.5), optimizer=optimizer)
    return model, thin, optimizer, made, x


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_one_inside_comes_along(name: str) -> None:
    model, thin, optimizer, made, x = thinned(WRAPPERS[name])
    assert type(made) is type(optimizer)
    kept = torch.tensor(slimfast.manifest(thin).keeps["0.weight"][0])
    before = [p.detach().clone() for p in model.parameters()]
    # Units that are gone get no gradient in a masked copy: its step is what the thin network's must be.
    masked = copy.deepcopy(model)
    names = dict(zip(model.parameters(), masked.parameters(), strict=True))
    twin = WRAPPERS[name](masked.parameters(), lr=0.1, momentum=0.9)
    gone = torch.ones(24).bool()
    gone[kept] = False
    with torch.no_grad():
        masked[2].weight[:, gone] = 0
    copy_state(optimizer, twin, names)
    step(masked, twin, x)
    step(thin, made, x)
    torch.testing.assert_close(thin[0].weight, masked[0].weight[kept])
    torch.testing.assert_close(thin[2].weight, masked[2].weight[:, kept])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def copy_state(optimizer: Any, twin: Any, names: dict[Any, Any]) -> None:
    """What an optimizer and those inside it know of their parameters, for another network's."""
    for a, b in zip(inside(optimizer), inside(twin), strict=True):
        for parameter, state in a.state.items():
            b.state[names[parameter]] = {key: copy.deepcopy(value) for key, value in state.items()}


def inside(optimizer: Any) -> list[Any]:
    held = [*vars(optimizer).values(), *vars(optimizer).get("parts", {}).values()]
    return [optimizer, *(o for part in held if isinstance(part, torch.optim.Optimizer) for o in inside(part))]


def test_the_copy_has_an_inside_of_its_own() -> None:
    _, thin, optimizer, made, _ = thinned(WRAPPERS["twice"])
    ours, theirs = inside(made), inside(optimizer)
    assert [type(o) for o in ours] == [type(o) for o in theirs]
    assert not any(a is b for a, b in zip(ours, theirs, strict=True))
    assert ours[1].param_groups is ours[2].param_groups
    assert ours[1].state is ours[2].state
    held = {id(p) for o in ours for group in o.param_groups for p in group["params"]}
    assert held == {id(p) for p in thin.parameters()}


def test_a_scheduler_leaves_nothing_of_itself() -> None:
    model, x = network()
    optimizer = Sharing(model.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    thin, made = prune_channels(model, slimfast.plan(model, x, params=0.5), optimizer=optimizer)
    before = thin[0].weight.detach().clone()
    step(thin, made, x)
    assert not torch.equal(thin[0].weight, before)


def test_tensors_beside_the_state_are_refused() -> None:
    with pytest.raises(SlimfastError, match=r"Aside: slow \(24, 8\): expected tensors in its state alone"):
        thinned(Aside)
