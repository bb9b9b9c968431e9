"""Repair slice by slice against the same of all samples in one batch, on whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.repair_oracle import repair_at_once
from torch import Tensor, nn

import slimfast
from benchmarks.accuracy.networks.resnet_cifar import ResNet

Made = tuple[nn.Module, dict[str, Tensor]]


def resnet20() -> Made:
    model, x = ResNet(blocks=3), torch.randn(24, 3, 32, 32)
    # Statistics as a training leaves them.
    model.train()(x)
    return model, {"x": x}


def vit_tiny() -> Made:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=64), {"x": torch.randn(48, 3, 64, 64)}


def llama() -> Made:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(97, (48, 30))}


@pytest.mark.parametrize("build", [resnet20, vit_tiny, llama])
def test_slices_give_what_one_batch_gives(build: Callable[[], Made]) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    ((name, x),) = inputs.items()
    graph = slimfast.trace_channels(model, {name: x[:2]})
    calibration = slimfast.calibrate(model, graph, [{name: part} for part in x.split([7, 1, len(x) - 8])])
    plan = slimfast.plan(model, {name: x[:2]}, macs=0.5, calibration=calibration)
    plan = slimfast.select(model, plan, method="activations", calibration=calibration)
    keeps = {group.name: np.array(group.keep) for group in plan.groups}
    cut = slimfast.prune_channels(model, plan, verify=False)
    expected = repair_at_once(model, cut, graph, keeps, inputs)
    # As much as five samples hold: several slices, none of them a batch that was given.
    sample = calibration.bytes_held * x[0].numel()
    thin = slimfast.prune_channels(
        model, plan, repair="activations", calibration=calibration, verify=False, memory=int(20 * sample)
    )
    fits = slimfast.repair_report(thin).fits
    assert fits.keys() == expected.keys()
    for weight, fit in fits.items():
        other = expected[weight]
        assert fit.damping == other.damping, weight
        # A layer that reads no group that was cut may miss nothing at all.
        assert fit.after * other.before == pytest.approx(other.after * fit.before, rel=2e-3), weight
        # In shares of a variance that one has from all positions and the other from some.
        assert fit.before == pytest.approx(other.before, rel=0.02), weight
    with torch.no_grad():
        got, wanted = (_output(network(**inputs)) for network in (thin, cut))
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def _output(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.logits
