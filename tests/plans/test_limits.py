"""Budgets of a part of a network: what counts, what is left alone, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import slimfast
from slimfast import Plan, SlimfastError
from slimfast.plans.limits import budget_of, is_budget


class Net(nn.Module):
    """An embedding, a body of two layers and a head, of known sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10))
        layers = (nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 10)) for _ in range(2))
        self.body = nn.ModuleList(layers)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.body:
            x = torch.relu(layer(x))
        out: torch.Tensor = self.head(x)
        return out


EXAMPLE = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> Net:
    return Net().eval()


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_part_alone_meets_the_budget(model: Net) -> None:
    plan = slimfast.plan(model, EXAMPLE, params=0.5, within="body.*")
    thin: Any = slimfast.prune_channels(model, plan)
    assert 0.4 < size(thin.body) / size(model.body) <= 0.5
    by_macs = slimfast.plan(model, EXAMPLE, macs=0.5, within="body.*")
    cut: Any = slimfast.prune_channels(model, by_macs)
    macs = [
        sum(layer[0].weight.numel() + layer[2].weight.numel() for layer in network.body)
        for network in (cut, model)
    ]
    assert 0.4 < macs[0] / macs[1] <= 0.5


def test_what_has_no_say_in_the_part_is_left_alone(model: Net) -> None:
    plan = slimfast.plan(model, EXAMPLE, params=0.5, within=["body.1"])
    chosen = {group.name: group.chosen for group in plan.groups}
    assert chosen["embed.0"] == "excluded"
    assert chosen["body.0.0"] == "excluded"
    assert chosen["body.1.0"] == "tau"
    # The residual stream is what it reads and makes.
    assert plan.widths()["body.1.0"] < 40


def test_a_part_that_is_all_is_a_budget_of_the_whole(model: Net) -> None:
    whole = slimfast.plan(model, EXAMPLE, params=0.6)
    part = slimfast.plan(model, EXAMPLE, params=0.6, within="*")
    assert part.widths() == whole.widths()


def test_each_glob_has_a_budget_of_its_own(model: Net) -> None:
    plan = slimfast.plan(model, EXAMPLE, params={"body.0": 0.7, "body.1": 0.3}, macs=0.9)
    thin: Any = slimfast.prune_channels(model, plan)
    assert size(thin.body[0]) <= 0.7 * size(model.body[0])
    assert size(thin.body[1]) <= 0.3 * size(model.body[1])
    assert plan.budget == {"params of body.0": 0.7, "params of body.1": 0.3, "macs": 0.9}


def test_numbers_above_one_are_counts_of_the_part(model: Net) -> None:
    plan = slimfast.plan(model, EXAMPLE, params="1K", within="body.*")
    thin: Any = slimfast.prune_channels(model, plan)
    assert 900 < size(thin.body) <= 1000


def test_marginal_gain_spends_a_budget_of_a_part(model: Net) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, x), [x])
    thin: Any = slimfast.slim(
        model, x, params=0.5, within="body.*", calibration=calibration, select="activations"
    )
    assert 0.4 < size(thin.body) / size(model.body) <= 0.5
    assert thin.embed[0].out_features == 20


def test_it_says_what_the_part_costs_and_is_written(model: Net) -> None:
    plan = slimfast.plan(model, EXAMPLE, params=0.5, within=["body.0", "body.1"])
    before = size(model.body)
    assert "params of body.0, body.1: asked for 0.5, reached " in str(plan)
    assert f" of {before:,} (" in str(plan)
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert "params of body.0, body.1: asked for 0.5\n" in f"{read}\n"
    thin: Any = slimfast.prune_channels(model, read)
    assert size(thin.body) <= 0.5 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": 0.5, "within": "bodi.*"}, "within: bodi.* is no layer and no tensor of the model"),
        ({"params": {"tail": 0.5}}, "within: tail is no layer and no tensor"),
        ({"params": {"body.*": 0.5}, "within": "body.*"}, "expected within, or globs in params, got both"),
        ({"within": "body.*"}, "expected params or macs for the part"),
        ({"within": "body.*", "explained_variance": 0.9}, "expected params or macs for the part"),
        ({"params": 0.5, "within": []}, "expected within to be a glob or several"),
        ({"params": {"body.*": 1.5, "head": -1}}, r"params['head'] in (0, 1]"),
    ],
)
def test_what_cannot_be_meant_is_refused(model: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^plan: ") as found:
        slimfast.plan(model, EXAMPLE, **options)
    assert message in str(found.value)


def test_a_budget_of_a_part_that_cannot_be_reached_names_the_nearest(model: Net) -> None:
    with pytest.raises(
        SlimfastError, match=r"params of body\.\* \(.*cannot be reached; the nearest that can"
    ):
        slimfast.plan(model, EXAMPLE, params=3, within="body.*")


def test_names_of_budgets() -> None:
    assert budget_of({"params": 0.5, "within": "a"}) == {"params of a": 0.5}
    assert budget_of({"macs": {"a.*": "50%"}}) == {"macs of a.*": 0.5}
    assert all(map(is_budget, ("params", "macs", "params of a, b")))
    assert not any(map(is_budget, ("params of ", "latency of a", "paramsof a", "")))
