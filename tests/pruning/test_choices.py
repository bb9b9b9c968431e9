"""One argument chooses the units and the repair that a training starts from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.pruning.choices import NOT_GIVEN, Given, chosen, chosen_for_training


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_without_data_units_are_large_and_nothing_is_repaired():
    model = network()
    thin = slimfast.slim(model, X[:2], params=0.5, for_training=True)
    assert same(thin, slimfast.slim(model, X[:2], params=0.5, select="lookahead"))


def test_with_data_a_repair_is_damped():
    model = network()
    graph = slimfast.trace_channels(model, X[:2])
    calibration = slimfast.calibrate(model, graph, [X])
    plan = slimfast.plan(model, graph=graph, params=0.5, calibration=calibration)
    thin = slimfast.prune_channels(model, plan, calibration=calibration, for_training=True)
    by_hand = {"select": "lookahead", "repair": "activations"}
    assert same(
        thin, slimfast.prune_channels(model, plan, calibration=calibration, repair_damping=1.0, **by_hand)
    )
    assert not same(thin, slimfast.prune_channels(model, plan, calibration=calibration, **by_hand))


def test_units_of_a_transformer_are_by_activations():
    assert chosen_for_training(NOT_GIVEN, {"head", "channel"}, calibrated=True) == (
        "activations",
        "activations",
        1.0,
    )
    assert chosen_for_training(NOT_GIVEN, {"channel"}, calibrated=True) == ("lookahead", "activations", 1.0)
    assert chosen_for_training(NOT_GIVEN, {"head"}, calibrated=False) == ("lookahead", None, 0.0)


def test_a_calibration_chooses_the_units_and_repairs():
    model = network()
    graph = slimfast.trace_channels(model, X[:2])
    calibration = slimfast.calibrate(model, graph, [X])
    plan = slimfast.plan(model, graph=graph, params=0.5, calibration=calibration)

    def cut(**given):
        return slimfast.prune_channels(model, plan, **given)

    by_hand = cut(select="activations", repair="activations", calibration=calibration)
    thin = cut(calibration=calibration)
    assert same(thin, by_hand)
    assert slimfast.repair_report(thin).fits
    assert same(slimfast.slim(model, X[:2], params=0.5, calibration=calibration), by_hand)
    # What is given stays, each alone.
    large = cut(select="lookahead", repair="activations", calibration=calibration)
    assert same(cut(select="lookahead", calibration=calibration), large)
    unrepaired = cut(select="activations", repair=None, calibration=calibration)
    assert same(cut(repair=None, calibration=calibration), unrepaired)
    assert not same(unrepaired, by_hand)
    assert not same(large, by_hand)
    damped = cut(select="activations", repair="activations", repair_damping=0.5, calibration=calibration)
    assert same(cut(repair_damping=0.5, calibration=calibration), damped)


def test_without_a_calibration_nothing_is_repaired():
    assert chosen(NOT_GIVEN, calibrated=False) == (None, None, 0.0)
    plain = slimfast.slim(network(), X[:2], params=0.5)
    assert same(plain, slimfast.slim(network(), X[:2], params=0.5, select="lookahead", repair=None))
    assert chosen(Given("l1", "weights", 0.0), calibrated=False) == ("l1", "weights", 0.0)
    assert chosen(Given(None, "auto", 0.0), calibrated=True, lossless=True).repair is None
    with pytest.raises(ValueError, match="a damping is for repair from activations"):
        slimfast.slim(network(), X[:2], params=0.5, repair_damping=0.5)
    with pytest.raises(ValueError, match="expected 'weights', 'activations' or 'moments', got 'automatic'"):
        slimfast.slim(network(), X[:2], params=0.5, repair="automatic")


@pytest.mark.parametrize("given", [{"select": "l1"}, {"repair": "weights"}, {"repair_damping": 0.5}])
def test_both_are_refused(given):
    model = network()
    with pytest.raises(ValueError, match="for_training"):
        slimfast.slim(model, X[:2], params=0.5, for_training=True, **given)
    plan = slimfast.plan(model, X[:2], params=0.5)
    with pytest.raises(ValueError, match="for_training"):
        slimfast.prune_channels(model, plan, for_training=True, **given)


@pytest.mark.parametrize("batches", [[X], "calibration.safetensors", 3])
def test_what_is_no_calibration_is_refused_in_one_line(batches):
    model = network()
    graph = slimfast.trace_channels(model, X[:2])
    plan = slimfast.plan(model, graph=graph, params=0.5)
    for use in (
        lambda: slimfast.plan(model, graph=graph, params=0.5, calibration=batches),
        lambda: slimfast.prune_channels(model, plan, calibration=batches),
        lambda: slimfast.select(model, plan, calibration=batches),
        lambda: slimfast.slim(model, X[:2], params=0.5, calibration=batches),
        lambda: slimfast.slim(model, X[:2], params=0.5, depth=1, calibration=batches),
        lambda: slimfast.error_curves(model, graph, batches),
    ):
        said = f"calibration: expected what slimfast.calibrate returns, got {type(batches).__name__}"
        with pytest.raises(TypeError, match=f"^{said}$"):
            use()
