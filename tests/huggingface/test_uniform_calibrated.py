"""Uniform widths from a calibration: units by activations, repaired, loaded by the stock class."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import slimfast
from slimfast import Calibration, ErrorCurve, SlimfastError
from slimfast.huggingface.knobs import Knob
from slimfast.huggingface.turning import by_gain
from slimfast.plans.limits import Limits

TOKENS = torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(0))
EXAMPLE = {"input_ids": TOKENS[:2]}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def calibration(model: nn.Module) -> Calibration:
    graph = slimfast.trace_channels(model, EXAMPLE)
    return slimfast.calibrate(model, graph, [{"input_ids": TOKENS}])


def test_the_stock_class_loads_the_repaired_network(
    model: Any, calibration: Calibration, tmp_path: Path
) -> None:
    plan = slimfast.plan_uniform(model, EXAMPLE, params=0.7, within="model.layers.*", calibration=calibration)
    assert all(group.keep is not None for group in plan.groups)
    thin: Any = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
    layers = [size(network.model.layers) for network in (thin, model)]
    assert 0.5 < layers[0] / layers[1] <= 0.7
    assert slimfast.repair_report(thin).fits
    slimfast.save_pretrained(thin, tmp_path / "thin", EXAMPLE)
    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "thin")
    with torch.no_grad():
        assert torch.allclose(stock(TOKENS).logits, thin(TOKENS).logits, atol=1e-5)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    written = [
        network.generate(TOKENS[:2, :6], attention_mask=mask, max_new_tokens=4, do_sample=False)
        for network in (thin, stock)
    ]
    assert torch.equal(*written)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_units_are_those_of_activations(model: Any, calibration: Calibration) -> None:
    plan = slimfast.plan_uniform(model, EXAMPLE, params=0.8, calibration=calibration)
    chosen = slimfast.select(model, plan, method="activations", calibration=calibration)
    assert plan.groups == chosen.groups
    assert len({group.width for group in plan.groups if group.kind == "channel"}) == 1


def test_a_budget_that_cannot_be_reached_is_told(model: Any, calibration: Calibration) -> None:
    with pytest.raises(SlimfastError, match=r"params of model\.layers\.\* <= 10 \(at least"):
        slimfast.plan_uniform(model, EXAMPLE, params=10, within="model.layers.*", calibration=calibration)


def two_knobs() -> tuple[Any, list[Knob], Limits]:
    """Two layers of 8 units that cost alike."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    graph = slimfast.trace_channels(net, torch.zeros(1, 4))
    steps = tuple(i / 8 for i in range(1, 9))
    knobs = [Knob((graph[name],), steps) for name in ("0", "2")]
    return graph, knobs, Limits(graph, {"params": 0.5})


def curve(name: str, errors: list[float]) -> ErrorCurve:
    return ErrorCurve(name, 8, np.array(errors))


def test_a_knob_is_turned_to_where_error_and_cost_are_least() -> None:
    graph, knobs, limits = two_knobs()
    # The first needs two units, the second all of them.
    curves = {
        "0": curve("0", [9.0, 4.0, *[0.0] * 7]),
        "2": curve("2", [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 0.0]),
    }
    turned = by_gain(knobs, curves, graph, limits)
    assert turned(0.0) == [0, 0]
    assert turned(1.0) == [7, 7]
    places = [turned(share) for share in np.linspace(0.0, 1.0, 101)]
    assert all(a[k] <= b[k] for a, b in itertools.pairwise(places) for k in (0, 1))
    assert [1, 7] in places


def test_a_knob_without_a_curve_stays_whole() -> None:
    graph, knobs, limits = two_knobs()
    turned = by_gain(knobs, {"0": curve("0", [9.0, 4.0, *[0.0] * 7])}, graph, limits)
    assert [turned(share)[1] for share in (0.0, 0.5, 1.0)] == [7, 7, 7]
