"""Optimizer state and averaged weights through a prune: what training does afterwards is what it would have
done."""

from __future__ import annotations

import copy

import pytest
import torch
from support.pruning_cases import build, plan_of, random_keeps, random_plan
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.training_state import cuts_between, prune_optimizer, prune_state

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.7, 0.8)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    out = model(x)
    (out * torch.arange(out.numel()).reshape(out.shape).cos()).sum().backward()
    optimizer.step()


def trained(name: str, kind: str, steps: int = 2):
    """A network in eval mode in float64 after some steps, with its optimizer."""
    model, x = build(name)
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(steps):
        step(model, optimizer, x)
    return model, optimizer, x


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_state_is_the_kept_part_of_the_state(name, kind):
    model, optimizer, x = trained(name, kind)
    before = copy.deepcopy(optimizer.state_dict())
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, 3)
    thin, pruned = prune_channels(model, plan_of(graph, keeps), verify=False, optimizer=optimizer)
    assert type(pruned) is type(optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    assert [names[id(p)] for p in optimizer.param_groups[0]["params"]] == [
        n for n, _ in thin.named_parameters()
    ]
    assert {k: v for k, v in pruned.param_groups[0].items() if k != "params"} == {
        k: v for k, v in optimizer.param_groups[0].items() if k != "params"
    }
    cuts = Cut(graph, keeps).tensor_cuts
    wide = dict(model.named_parameters())
    seen = 0
    for parameter_name, parameter in thin.named_parameters():
        found = pruned.state[parameter]
        assert found.keys() == optimizer.state[wide[parameter_name]].keys()
        for key, old in optimizer.state[wide[parameter_name]].items():
            if isinstance(old, torch.Tensor) and old.shape == wide[parameter_name].shape and old.numel() > 1:
                assert torch.equal(found[key], select_indices(old, cuts.get(parameter_name, {})))
                seen += 1
            elif isinstance(old, torch.Tensor) and old.numel() == 1:
                assert torch.equal(found[key], old)
                assert found[key] is not old
    assert seen > 0 or kind == "adafactor"
    step(thin, pruned, x)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(
            torch.equal(v, after["state"][key][k]) for k, v in state.items() if isinstance(v, torch.Tensor)
        )


def test_factored_state_is_cut_along_the_dims_it_has():
    model, optimizer, x = trained("transformer", "adafactor")
    graph = trace_channels(model, x)
    thin, pruned = prune_channels(model, plan_of(graph, random_keeps(graph, 5)), optimizer=optimizer)
    for parameter in thin.parameters():
        state = pruned.state[parameter]
        if "row_var" in state:
            assert state["row_var"].shape == (*parameter.shape[:-1], 1)
            assert state["col_var"].shape[-1] == parameter.shape[-1]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_a_step_after_the_prune_is_that_of_the_masked_original(name, kind):
    """Where removal equals masking, kept entries get the gradients and steps of the masked network."""
    model, optimizer, x = trained(name, kind)
    graph = trace_channels(model, x)
    keeps = {n: k for n, k in random_keeps(graph, 4).items() if graph[n].inexact is None}
    thin, pruned = prune_channels(model, plan_of(graph, keeps), optimizer=optimizer)
    cuts = Cut(graph, keeps).tensor_cuts
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            for dim, index in cuts.get(parameter_name, {}).items():
                gone = [i for i in range(parameter.shape[dim]) if i not in set(index.tolist())]
                parameter.index_fill_(dim, torch.tensor(gone), 0)
    before = {n: p.detach().clone() for n, p in thin.named_parameters()}
    step(model, optimizer, x)
    step(thin, pruned, x)
    wide = named_tensors(model)
    for parameter_name, parameter in thin.named_parameters():
        expected = select_indices(wide[parameter_name].detach(), cuts.get(parameter_name, {}))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=1e-9)
    assert any(not torch.equal(p, before[n]) for n, p in thin.named_parameters())


def test_groups_frozen_parameters_and_those_of_others():
    model, x = build("transformer")
    other = nn.Parameter(torch.ones(3))
    model.gate.weight.requires_grad_(False)
    weights = [p for p in model.parameters() if p.ndim > 1 and p is not model.gate.weight]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": [*rest, other], "lr": 0.5, "weight_decay": 0.0}]
    )
    (model(x).square().sum() + other.sum()).backward()
    optimizer.step()
    thin, pruned = prune_channels(model, random_plan(model, x), optimizer=optimizer)
    assert [g["lr"] for g in pruned.param_groups] == [1e-3, 0.5]
    assert [g["weight_decay"] for g in pruned.param_groups] == [0.1, 0.0]
    assert pruned.param_groups[1]["params"][-1] is other
    held = {id(p) for g in pruned.param_groups for p in g["params"]}
    assert id(thin.gate.weight) not in held
    # the tied weight is one parameter
    assert thin.logits.weight is thin.embed.weight
    assert id(thin.embed.weight) in held
    assert pruned.state[thin.embed.weight]["exp_avg"].shape == thin.embed.weight.shape
    assert pruned.state[other]["exp_avg"] is not optimizer.state[other]["exp_avg"]


def test_a_scheduler_goes_on_with_the_new_optimizer():
    model, optimizer, x = trained("conv", "sgd")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    step(model, optimizer, x)
    scheduler.step()
    thin, pruned = prune_channels(model, random_plan(model, x), optimizer=optimizer)
    again = torch.optim.lr_scheduler.StepLR(pruned, 1, 0.1)
    again.load_state_dict(scheduler.state_dict())
    wide = [p.detach().clone() for p in model.parameters()]
    step(thin, pruned, x)
    again.step()
    assert pruned.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**2)
    assert all(torch.equal(a, b) for a, b in zip(wide, model.parameters(), strict=True))


def test_optimizers_that_cannot_be_cut_are_refused():
    model, x = build("conv")
    plan = random_plan(model, x)
    with pytest.raises(SlimfastError, match="expected one that holds the model's parameters, got SGD with 1"):
        prune_channels(model, plan, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        lbfgs.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    with pytest.raises(
        SlimfastError, match=r"optimizer: LBFGS: \w+ of stem.weight: expected the parameter's shape"
    ):
        prune_channels(model, plan, optimizer=lbfgs)


def test_averaged_weights_follow_through_two_prunes():
    model, _, x = trained("conv", "sgd")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    average.update_parameters(model)
    average.update_parameters(model)
    state = average.state_dict()
    for seed in (0, 1):
        thin = prune_channels(model, random_plan(model, x, seed, 0.7))
        cuts = cuts_between(model, thin)
        found = prune_state(state, model, thin)
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(found[key], select_indices(value, cuts.get(key.removeprefix("module."), {})))
        renewed = AveragedModel(thin, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        renewed.load_state_dict(found)
        assert int(renewed.n_averaged) == 2
        assert renewed(x).isfinite().all()
        model, state = thin, found


def test_the_second_prune_of_an_optimizer_is_that_of_its_first():
    model, optimizer, x = trained("transformer", "adam")
    once, first = prune_channels(model, random_plan(model, x, 0), optimizer=optimizer)
    twice, second = prune_channels(once, random_plan(once, x, 1), optimizer=first)
    direct = prune_optimizer(optimizer, model, twice)
    for parameter in twice.parameters():
        for key, value in second.state[parameter].items():
            assert torch.equal(direct.state[parameter][key], value)


def test_states_and_networks_that_do_not_belong_together_are_refused():
    model, x = build("conv")
    thin = prune_channels(model, random_plan(model, x))
    with pytest.raises(SlimfastError, match=r"state: module.stem.weight: expected shape \(8, 3, 3, 3\), got"):
        prune_state({"module.stem.weight": thin.stem.weight}, model, thin)
    with pytest.raises(SlimfastError, match="holds indices that the model has not"):
        prune_state(thin.state_dict(), thin, model)
    other, _ = build("option-a")
    with pytest.raises(SlimfastError, match=r"thin: expected stem.weight cut from one of shape"):
        slimfast.prune_state(model.state_dict(), model, other)
