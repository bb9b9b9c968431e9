"""Rounds of pruning: budgets by schedule, what a training holds, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from support.gradual_cases import EXAMPLE, Net, batches, network, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slimfast
from slimfast.gradual.schedule import left_after, ways_done

SCHEDULES = ["geometric", "linear", "cubic", [0.5, 0.9, 1.0]]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_budgets_come_down_by_the_schedule(schedule):
    model = network()
    run = slimfast.rounds(model, EXAMPLE, macs=0.3, rounds=3, schedule=schedule)
    whole, costs = None, []
    for plan, _, _ in run:
        whole = whole or plan.cost_before.macs
        costs.append(plan.cost_after.macs / whole)
    ways = ways_done(schedule, 3)
    for way, cost in zip(ways, costs, strict=True):
        wanted = 0.3**way if schedule == "geometric" else 1 - 0.7 * way
        # The widest unit of this network is a thirtieth of it.
        assert wanted - 1 / 24 < cost <= wanted
    assert costs == sorted(costs, reverse=True)


def test_several_budgets_and_those_of_parts_come_down_together():
    model = network()
    asked = {"body*": 0.5, "stem*": 0.8}
    run = slimfast.rounds(model, EXAMPLE, params=asked, macs=0.6, rounds=2)
    *_, (plan, last, _) = run
    assert sum(p.numel() for p in last.body.parameters()) <= 0.5 * sum(
        p.numel() for p in model.body.parameters()
    )
    assert sum(p.numel() for p in last.stem.parameters()) <= 0.8 * sum(
        p.numel() for p in model.stem.parameters()
    )
    assert plan.budget.keys() == {"params of body*", "params of stem*", "macs"}


def test_a_schedule_ends_at_the_end():
    for schedule in SCHEDULES:
        ways = ways_done(schedule, 3)
        assert ways[-1] == 1.0
        assert left_after(ways[-1], schedule, 1000.0, 100.0) == pytest.approx(100.0)
    # A cubic one is ahead of a linear one on the way.
    cubic, linear = ways_done("cubic", 4), ways_done("linear", 4)
    assert all(ahead > behind for ahead, behind in zip(cubic[:-1], linear[:-1], strict=True))


def test_each_round_cuts_what_the_training_has_made_of_the_one_before():
    model = network()
    kept = copy.deepcopy(model.state_dict())
    before = None
    for _, thin, _ in slimfast.rounds(model, EXAMPLE, macs=0.5, rounds=2):
        if before is not None:
            kept_units = slimfast.manifest(thin).keeps["head.weight"][1]
            first = list(slimfast.manifest(before).keeps["head.weight"][1])
            units = [first.index(unit) for unit in kept_units]
            assert torch.equal(thin.head.bias, before.head.bias)
            assert torch.equal(thin.body.bias, before.body.bias[units])
        with torch.no_grad():
            thin.head.bias.add_(1.0)
            thin.body.bias.add_(2.0)
        before = thin
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name])


def test_the_optimizer_the_scheduler_and_the_average_go_on():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    held = average.module

    def also(network):
        scheduler.step()
        average.update_parameters(network)

    train(model, optimizer, also=[also])
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    averaged = {name: tensor.clone() for name, tensor in average.module.named_parameters()}
    run = slimfast.rounds(
        model, EXAMPLE, macs=0.4, rounds=2, optimizer=optimizer, scheduler=scheduler, averages=[average]
    )
    for number, (_, thin, given) in enumerate(run):
        assert given is optimizer
        parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert parameters == {id(p) for p in thin.parameters()}
        if number == 0:
            units = torch.tensor(slimfast.manifest(thin).keeps["body.bias"][0])
            assert torch.equal(optimizer.state[thin.body.bias]["exp_avg"], moments["body.bias"][units])
            assert torch.equal(average.module.body.bias, averaged["body.bias"][units])
        assert average.module is held
        before = thin.body.weight.detach().clone()
        train(thin, optimizer, also=[also])
        assert not torch.equal(before, thin.body.weight)
        assert average(EXAMPLE).shape == (2, 5)
        assert average.module.body.weight.shape == thin.body.weight.shape
    # Nine steps, halved after every second.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)
    assert int(average.n_averaged) == 9


def test_what_a_repair_has_solved_for_begins_anew_in_the_average():
    model = network()
    average = AveragedModel(model)
    average.update_parameters(model)
    run = slimfast.rounds(
        model, EXAMPLE, macs=0.4, rounds=1, calibration=batches(), averages=[average], optimizer=None
    )
    ((_, thin, _),) = run
    moved = [name for name, changes in slimfast.manifest(thin).moved.items() if "repair" in changes]
    assert "body.weight" in moved
    assert torch.equal(average.module.body.weight, thin.body.weight)


def test_a_thin_network_loads_from_the_wide_class_after_any_round(tmp_path):
    model = network()
    for number, (_, thin, _) in enumerate(slimfast.rounds(model, EXAMPLE, macs=0.4, rounds=3)):
        train(thin, torch.optim.SGD(thin.parameters(), lr=0.1))
        slimfast.save(thin, tmp_path / f"{number}.safetensors")
        loaded = slimfast.load(tmp_path / f"{number}.safetensors", Net())
        x = batches()[0]
        assert torch.equal(thin.eval()(x), loaded.eval()(x))
        thin.train()


def test_in_place_the_modules_are_those_of_the_user():
    model = network()
    stem, seen = model.stem, []
    model.head.register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    twin = copy.deepcopy(model)
    run = slimfast.rounds(model, EXAMPLE, macs=0.4, rounds=2, optimizer=optimizer, in_place=True)
    other = slimfast.rounds(twin, EXAMPLE, macs=0.4, rounds=2)
    for (_, thin, _), (_, apart, _) in zip(run, other, strict=True):
        assert thin is model
        assert model.stem is stem
        assert stem.out_channels == stem.weight.shape[0] == model.norm.num_features < 24
        for name, tensor in apart.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
        seen.clear()
        train(model, optimizer)
        assert len(seen) == 3
        apart.load_state_dict(model.state_dict())
    assert slimfast.manifest(model).widths["stem"][0] == 24


def test_a_cancelled_round_can_be_asked_for_again():
    model, stopping = network(), [True]
    told = []

    def progress(done, total):
        told.append((done, total))
        if stopping[0] and done > total // 2:
            raise slimfast.Cancelled

    run = slimfast.rounds(
        model, EXAMPLE, macs=0.4, rounds=2, calibration=batches(), progress=progress, averages=[]
    )
    next(run)
    with pytest.raises(slimfast.Cancelled):
        next(run)
    stopping[0] = False
    assert next(run).number == 2
    assert {total for _, total in told} == {600}
    assert max(done for done, _ in told) == 600


def test_widths_by_hand_are_cut_once():
    model = network()
    run = slimfast.rounds(model, EXAMPLE, macs=0.5, rounds=3, overrides={"stem": 0.5})
    assert [thin.stem.out_channels for _, thin, _ in run] == [12, 12, 12]


def test_another_network_put_in_the_place_of_the_thin_one_is_cut_next():
    run = slimfast.rounds(network(), EXAMPLE, macs=0.5, rounds=2)
    step = next(run)
    trained = copy.deepcopy(step.model)
    with torch.no_grad():
        trained.head.bias.fill_(3.0)
    step.model = trained
    assert torch.equal(next(run).model.head.bias, torch.full((5,), 3.0))


def refused(**options):
    return slimfast.rounds(network(), EXAMPLE, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"macs": 0.5, "rounds": 0}, "integer >= 1, got 0"),
        ({"macs": 0.5, "rounds": 2, "schedule": "geometrical"}, "geometric"),
        ({"macs": 0.5, "rounds": 2, "schedule": [0.5, 0.9]}, "the last one 1"),
        ({"macs": 0.5, "rounds": 3, "schedule": [0.5, 1.0]}, "3 rising numbers"),
        ({"macs": 0.5, "rounds": 2, "schedule": [0.7, 0.5]}, "rising"),
        ({}, "a budget of params or macs"),
        ({"overrides": {"stem": 4}}, "a budget of params or macs"),
        ({"explained_variance": 0.9}, "a budget of params or macs"),
        ({"macs": 0.5, "calibration": iter([])}, "iterated again"),
        ({"macs": 0.5, "calibration": 3}, "iterated again"),
        ({"macs": 0.5, "averages": [torch.nn.Linear(2, 2)]}, "AveragedModel"),
        ({"mac": 0.5}, "did you mean 'macs'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        refused(**options)


def test_a_calibration_of_one_network_is_not_one_of_all():
    model = network()
    graph = slimfast.trace_channels(model, EXAMPLE)
    with pytest.raises(TypeError, match="measures anew"):
        refused(macs=0.5, calibration=slimfast.calibrate(model, graph, batches()))
