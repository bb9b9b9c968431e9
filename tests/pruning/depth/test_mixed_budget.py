"""Depth and width share one budget."""

from __future__ import annotations

import pytest
import torch
from support.depth_cases import Mlps, llama, tokens

import slimfast

BATCHES = [tokens(4, 10, seed, padding=3) for seed in range(4)]


def calibrated(model):
    return slimfast.calibrate(model, slimfast.trace_channels(model, tokens()), BATCHES)


@pytest.mark.parametrize("depth", [1, [0, 2]])
def test_layers_and_widths_meet_the_budget_of_the_whole(depth, tmp_path):
    model = llama()
    calibration = calibrated(model)
    thin = slimfast.slim(
        model, tokens(), params=0.7, within="model.layers.*", include=["channel"], depth=depth,
        calibration=calibration, select="activations", repair="activations",
    )  # fmt: skip

    def layers(network):
        return sum(p.numel() for p in network.model.layers.parameters())

    assert layers(thin) <= 0.7 * layers(model)
    assert layers(thin) > 0.6 * layers(model), "what the layers leave of it is spent"
    assert len(thin.model.layers) in ([4] if depth == 1 else [3, 5])
    slimfast.save(thin, tmp_path / "a.safetensors")
    loaded = slimfast.load(tmp_path / "a.safetensors", llama())
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, thin(**tokens()).logits)


def test_of_several_depths_the_nearest_network_is_taken():
    """Layers that add nothing go, and widths stay; where all add alike, none goes."""
    model = llama()
    with torch.no_grad():
        for layer in (1, 3):
            model.model.layers[layer].self_attn.o_proj.weight.mul_(1e-4)
            model.model.layers[layer].mlp.down_proj.weight.mul_(1e-4)
    thin = slimfast.slim(
        model, tokens(), params=0.6, within="model.layers.*", include=["channel"], depth=[0, 1, 2],
        calibration=calibrated(model), select="activations", repair="activations",
    )  # fmt: skip
    assert len(thin.model.layers) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": -1, "params": 0.7}, "0 or more"),
        ({"depth": [], "params": 0.7}, "0 or more"),
        ({"depth": 1, "params": 0.7}, "expected a calibration"),
    ],
)
def test_wrong_depths_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        slimfast.slim(Mlps().eval(), torch.randn(2, 6), **options)


def test_depth_wants_a_budget():
    model = llama()
    calibration = calibrated(model)
    for options, got in (({"explained_variance": 0.9}, "none"), ({"params": 0.9, "latency": 0.5}, "latency")):
        with pytest.raises(ValueError, match=f"budget of params or macs alone for depth, got .*{got}"):
            slimfast.slim(model, tokens(), depth=1, calibration=calibration, **options)
