"""What hangs on a network that is cut in place: hooks of modules and of parameters, handles, a folder."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn

import slimfast

EXAMPLE = torch.zeros(2, 8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def cut(model):
    run = slimfast.rounds(model, EXAMPLE, params=0.5, rounds=1, in_place=True)
    next(run)
    return run


class Listener:
    """Counts calls, as a recorder of activations does."""

    def __init__(self):
        self.heard = 0

    def hear(self, module, *args):
        self.heard += 1

    def count(self, _, module, *args):
        self.heard += 1


REGISTER = {
    "forward": lambda layer, listener: layer.register_forward_hook(listener.hear),
    "before": lambda layer, listener: layer.register_forward_pre_hook(listener.hear),
    "backward": lambda layer, listener: layer.register_full_backward_hook(listener.hear),
    "always": lambda layer, listener: layer.register_forward_hook(listener.hear, always_call=True),
    "partial": lambda layer, listener: layer.register_forward_hook(partial(listener.count, None)),
    "function": lambda layer, listener: layer.register_forward_hook(lambda *args: listener.hear(*args)),
}


@pytest.mark.parametrize("kind", REGISTER)
def test_a_hook_goes_on_reporting_and_its_handle_removes_it(kind):
    model, listener = network(), Listener()
    handle = REGISTER[kind](model[2], listener)
    cut(model)
    listener.heard = 0
    model(torch.randn(3, 8)).sum().backward()
    assert listener.heard == 1
    handle.remove()
    model(torch.randn(3, 8)).sum().backward()
    assert listener.heard == 1


def test_a_hook_that_holds_a_weight_holds_the_thin_one():
    class Adds:
        def __init__(self, weight):
            self.weight = weight

        def add(self, module, args, output):
            return output + 0.0 * self.weight.sum(1)

    model = network()
    model[0].register_forward_hook(Adds(model[0].weight).add)
    cut(model)
    (hook,) = model[0]._forward_hooks.values()
    assert hook.__self__.weight is model[0].weight
    model(torch.randn(3, 8))


def test_hooks_of_a_parameter_are_named():
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut(network())
    model[2].weight.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match=r"2\.weight has a hook of its own \(register_hook\)"):
        cut(model)
    model = network()
    for parameter in model[4].parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.warns(UserWarning, match=r"4\.weight and 1 more has a hook .*post_accumulate"):
        cut(model)


class WithoutState:
    def step(self):
        pass


class Odd(WithoutState):
    def __init__(self, held):
        self.held = held

    def state_dict(self):
        return {"deep": [{"held": self.held}]}

    def load_state_dict(self, state):
        self.held = state["deep"][0]["held"]


class Own:
    """A class that a reader of plain values does not know."""


def test_a_scheduler_that_a_folder_cannot_keep_is_refused_before_the_cut(tmp_path):
    for number, (scheduler, error, match) in enumerate(
        [
            (WithoutState(), TypeError, "a scheduler with a state_dict"),
            (Odd(lambda: 1), slimfast.SlimfastError, "state_dict of the scheduler holds more"),
            (Odd(Own()), slimfast.SlimfastError, "state_dict of the scheduler holds more"),
        ]
    ):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run = slimfast.rounds(
            model, EXAMPLE, params=0.5, rounds=2, in_place=True, optimizer=optimizer, scheduler=scheduler,
            folder=tmp_path / str(number),
        )  # fmt: skip
        with pytest.raises(error, match=match) as caught:
            next(run)
        assert "\n" not in str(caught.value)
        assert model[0].out_features == 16
        assert run.plans == []
        # Without a folder nothing is kept.
        next(slimfast.rounds(model, EXAMPLE, params=0.5, optimizer=optimizer, scheduler=scheduler))


def test_plain_state_comes_back(tmp_path):
    held = {"rate": 0.5, "seen": torch.arange(3), "names": ("a", None)}
    for given in (Odd(held), Odd(None)):
        run = slimfast.rounds(network(), EXAMPLE, params=0.5, rounds=2, scheduler=given, folder=tmp_path)
        next(run)
    assert given.held["rate"] == 0.5
    assert given.held["names"] == ("a", None)
    assert torch.equal(given.held["seen"], torch.arange(3))


def test_a_scheduler_and_an_average_of_others_are_refused_before_the_cut():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    other = torch.optim.SGD(model.parameters(), 0.1)
    rates = torch.optim.lr_scheduler
    run = slimfast.rounds(
        model, EXAMPLE, params=0.5, in_place=True, optimizer=optimizer, scheduler=rates.StepLR(other, 1)
    )
    with pytest.raises(ValueError, match="scheduler of this optimizer, got a StepLR of another one"):
        next(run)
    run.scheduler = rates.SequentialLR(
        optimizer, [rates.LinearLR(optimizer), rates.ConstantLR(optimizer)], [2]
    )
    next(run)
    average = torch.optim.swa_utils.AveragedModel(
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    )
    model = network()
    run = slimfast.rounds(model, EXAMPLE, params=0.5, in_place=True, averages=[average])
    with pytest.raises(
        slimfast.SlimfastError, match=r"0\.weight \(16, 8\), got one of another, with \(12, 8\)"
    ):
        next(run)
    assert model[0].out_features == 16
    for state in (None, [1], "state"):
        with pytest.raises(TypeError, match="expected a state dict"):
            slimfast.prune_state(state, model, model)
