"""One argument chooses the units and the repair that a training starts from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.pruning.training_start import training_start


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
    assert training_start({"head", "channel"}, calibrated=True) == ("activations", "activations", 1.0)
    assert training_start({"channel"}, calibrated=True) == ("lookahead", "activations", 1.0)
    assert training_start({"head"}, calibrated=False) == ("lookahead", None, 0.0)


@pytest.mark.parametrize("given", [{"select": "l1"}, {"repair": "weights"}, {"repair_damping": 0.5}])
def test_both_are_refused(given):
    model = network()
    with pytest.raises(ValueError, match="for_training"):
        slimfast.slim(model, X[:2], params=0.5, for_training=True, **given)
    plan = slimfast.plan(model, X[:2], params=0.5)
    with pytest.raises(ValueError, match="for_training"):
        slimfast.prune_channels(model, plan, for_training=True, **given)
