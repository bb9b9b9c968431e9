"""Repair from moments alone: least squares of what the wide network's layers read, with nothing run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.tiny_decoders import llama, padded, texts
from torch import Tensor, nn

import slimfast
from slimfast.errors import SlimfastError


def perceptron(bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6, bias=bias)).eval()


def inputs(count: int, seed: int = 1) -> Tensor:
    # Few directions that vary much: units depend on each other.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator) @ torch.randn(5, 12, generator=generator)


def thin(model: nn.Module, x: Tensor, share: float = 0.5, **options: Any) -> nn.Module:
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x], samples=len(x))
    plan = slimfast.plan(model, x[:2], params=share)
    settings: dict[str, Any] = {"repair": "moments", "calibration": calibration, "select": "activations"}
    return slimfast.prune_channels(model, plan, **settings | options)


def error(network: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((network(x) - model(x)).double().square().mean())


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_least_squares_of_what_is_read(bias: bool) -> None:
    model, x = perceptron(bias), inputs(4000)
    found = thin(model, x)
    keep = slimfast.manifest(found).keeps["2.weight"][1]
    with torch.no_grad():
        read = model[1](model[0](x)).double()
        design, wanted = read[:, torch.tensor(keep)], model(x).double()
        if bias:
            design = torch.cat([design, torch.ones(len(x), 1)], 1)
        best = torch.linalg.lstsq(design, wanted).solution
        least = float((design @ best - wanted).square().mean())
    got = error(found, model, x)
    assert least <= got * (1 + 1e-6)
    # The damping that cross-validation takes from so many positions costs next to nothing.
    assert got <= least * 1.01 + 1e-10
    assert got < 0.2 * error(thin(model, x, repair=None), model, x)
    fit = slimfast.repair_report(found).fits["2.weight"]
    assert slimfast.repair_report(found).kind == "moments"
    spread = float((wanted - (wanted.mean(0) if bias else 0.0)).square().sum(1).mean())
    assert fit.after == pytest.approx(6 * got / spread, rel=0.05)


def test_units_that_others_make_up_are_missed_by_nobody() -> None:
    model, x = perceptron(), inputs(500)
    with torch.no_grad():
        model[0].weight[16:] = model[0].weight[:16] * torch.rand(16, 1)
        model[0].bias.zero_()
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x], samples=len(x))
    made = slimfast.plan(model, x[:1], params=0.56)
    found = slimfast.prune_channels(
        model, made, repair="moments", calibration=calibration, select="activations"
    )
    assert error(found, model, x) < 1e-3 * float(model(x).detach().var())


def test_few_positions_are_damped_and_many_are_not() -> None:
    model = perceptron()
    noisy, held = torch.randn(24, 12), torch.randn(2000, 12)
    dampings = []
    for x in (noisy, torch.randn(20000, 12)):
        found = thin(model, x)
        dampings.append(slimfast.repair_report(found).fits["2.weight"].damping)
        assert error(found, model, held) < error(thin(model, x, repair=None), model, held)
    assert dampings[0] > 10 * dampings[1]
    assert slimfast.repair_report(thin(model, noisy, repair_damping=5.0)).fits["2.weight"].damping >= 5.0


def test_a_layer_that_reads_nothing_stays_as_it_was_cut() -> None:
    model = perceptron(bias=False)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    found = thin(model, inputs(100), select="l1")
    assert math.isinf(slimfast.repair_report(found).fits["2.weight"].damping)
    keep = slimfast.manifest(found).keeps["2.weight"][1]
    assert torch.equal(found[2].weight, model[2].weight[:, torch.tensor(keep)])


def test_convolutions_and_flattened_units_are_solved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()
    x = torch.randn(400, 3, 8, 8)
    found, plain = thin(model, x, 0.6), thin(model, x, 0.6, repair=None)
    report = slimfast.repair_report(found)
    assert {"2.weight", "5.weight"} == set(report.fits)
    assert error(found, model, x) < 0.8 * error(plain, model, x)


def test_a_decoder_is_nearer_its_teacher() -> None:
    model = llama()
    rows = torch.stack(texts(*[24] * 64))
    example = {"input_ids": rows[:1]}
    graph = slimfast.trace_channels(model, example, include=["channel"])
    calibration = slimfast.calibrate(
        model, graph, [{"input_ids": part} for part in rows.split(8)], samples=64
    )
    plan = slimfast.plan(model, example, params=0.8, include=["channel"], calibration=calibration)
    held = padded(texts(20, 31, 25, seed=9), 31)

    def distance(repair: Any) -> float:
        network = slimfast.prune_channels(
            model, plan, select="activations", repair=repair, calibration=calibration
        )
        seen = held["attention_mask"].bool()
        with torch.no_grad():
            return float((network(**held).logits - model(**held).logits)[seen].square().mean())

    assert distance("moments") < 0.9 * distance(None)


def test_what_it_cannot_do_is_said() -> None:
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6)).eval()
    with pytest.raises(SlimfastError, match=r"batch norms as 1 need new statistics: repair='activations'"):
        thin(normed, inputs(100))
    plan = slimfast.plan(perceptron(), inputs(1), params=0.5)
    with pytest.raises(ValueError, match="expected a calibration for kind 'moments', got none"):
        slimfast.prune_channels(perceptron(), plan, repair="moments")
    x = inputs(200)
    graph = slimfast.trace_channels(perceptron(), x[:1])
    other = slimfast.calibrate(perceptron(seed=7), graph, [x], samples=200)
    with pytest.raises(SlimfastError, match="expected the weights that were calibrated"):
        slimfast.prune_channels(perceptron(), plan, repair="moments", calibration=other)
