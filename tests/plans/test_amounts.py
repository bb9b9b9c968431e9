"""Budgets as numbers and texts; multiples that narrow layers need not have; why a budget is out of reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.graph_cases import Net, conv
from torch import nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.plans.amounts import amount_of
from slimfast.plans.plan_data import Plan


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("50%", 0.5),
        (" 12.5 % ", 0.125),
        ("100%", 1.0),
        ("0.5", 0.5),
        ("2e9", 2e9),
        ("1.5G", 1.5e9),
        ("7B", 7e9),
        ("3 M", 3e6),
        ("250K", 2.5e5),
        ("2T", 2e12),
        (0.25, 0.25),
        (3, 3.0),
    ],
)
def test_an_amount_is_a_number_or_a_text(text, number):
    assert amount_of("macs", text) == pytest.approx(number, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["half", "", "%", "50%%", "1.5X", "1e", "1.2.3", "-5%", "nan", "0%", "150%", -1, 0.0]
)
def test_what_is_no_amount_is_refused_by_its_name(text):
    with pytest.raises(ValueError, match="plan: expected macs"):
        amount_of("macs", text)


@pytest.mark.parametrize("value", [True, [1], {"share": 1}, 1j])
def test_what_is_neither_number_nor_text_is_a_type_error(value):
    with pytest.raises(TypeError, match="plan: expected params to be a number or a text"):
        amount_of("params", value)


@given(st.floats(1e-3, 100.0))
def test_a_percentage_is_a_share(percent):
    assert amount_of("macs", f"{percent!r}%") == percent / 100


def network():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()


def test_a_text_plans_what_its_number_does():
    model, x = network(), torch.randn(1, 3, 12, 12)
    plans = [slimfast.plan(model, x, macs=budget) for budget in ("50%", 0.5, "0.5")]
    assert plans[0].widths() == plans[1].widths() == plans[2].widths()
    assert plans[0].budget == {"macs": 0.5}
    assert slimfast.plan(model, x, explained_variance="90%").explained_variance == 0.9


def test_layers_narrower_than_a_multiple_stay_whole():
    plan = slimfast.plan(network(), torch.randn(1, 3, 12, 12), macs=0.6, multiple_of=8)
    widths = plan.widths()
    assert widths["2"] == 6
    assert widths["0"] % 8 == 0
    assert widths["0"] < 32


def test_a_multiple_for_each_glob(tmp_path):
    plan = slimfast.plan(network(), torch.randn(1, 3, 12, 12), macs=0.6, multiple_of={"0": 16, "*": 3})
    assert (plan.widths()["0"], plan.widths()["2"] % 3) == (16, 0)
    assert "widths are multiples of 16 (0), 3 (*), or whole" in str(plan)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").multiple_of == {"0": 16, "*": 3}
    with pytest.raises(ValueError, match="multiple_of: no group matches 'layer9'"):
        slimfast.plan(network(), torch.randn(1, 3, 12, 12), macs=0.6, multiple_of={"layer9": 8})
    with pytest.raises(ValueError, match=r"expected multiple_of\['0'\] to be an integer >= 1, got 0"):
        slimfast.plan(network(), torch.randn(1, 3, 12, 12), macs=0.6, multiple_of={"0": 0})


def test_a_plan_is_given_as_a_path_too(tmp_path):
    model, x = network(), torch.randn(1, 3, 12, 12)
    plan = slimfast.plan(model, x, macs=0.5)
    plan.save(tmp_path / "plan.json")
    for path in (tmp_path / "plan.json", str(tmp_path / "plan.json")):
        thin = slimfast.prune_channels(model, path)
        assert {n: t.shape for n, t in thin.named_parameters()} == {
            n: t.shape for n, t in slimfast.prune_channels(model, plan).named_parameters()
        }
        assert all(group.keep is not None for group in slimfast.select(model, path).groups)
    with pytest.raises(TypeError, match="plan: expected a Plan or the path of one, got dict"):
        slimfast.prune_channels(model, {})


def test_a_budget_out_of_reach_says_what_stays_and_what_may_help():
    model = Net(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 16, 3), b=conv(16, 64, 3))
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(SlimfastError, match=r"cannot be reached; the nearest") as told:
        slimfast.plan(model.eval(), x, params=0.01, multiple_of=4)
    assert "what may help: a smaller multiple_of or min_width" in str(told.value)
    with pytest.raises(SlimfastError, match=r"1 group is left alone: excluded.*fewer groups excluded"):
        slimfast.plan(model, x, params=0.5, exclude=["a"])
    model.unused = nn.Linear(100, 100)
    with pytest.raises(
        SlimfastError, match=r"\d\d% of the parameters stay whole: the forward does not use it"
    ):
        slimfast.plan(model, x, params=0.2)
