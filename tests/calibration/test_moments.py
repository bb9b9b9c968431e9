"""Calibration: moments of what consumers read, against the plain formula; inputs of every form; files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibration_cases import Words, images, read_by, small
from torch import Tensor, nn

import slimfast
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.moments import unit_covariance


@pytest.fixture
def model() -> nn.Sequential:
    return small()


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1, 1, 10]])
def test_moments_are_those_of_all_samples_at_once(model: nn.Sequential, sizes: list[int]) -> None:
    x = images()
    graph = slimfast.trace_channels(model, x[:1])
    found = slimfast.calibrate(model, graph, x.split(sizes), dtype=torch.float64)
    assert sorted(found.readings) == ["3.weight", "6.weight"]
    for name, layer in (("3.weight", 3), ("6.weight", 6)):
        columns = read_by(model, layer, x)
        reading = found.readings[name]
        assert reading.count == columns.shape[1]
        assert torch.allclose(reading.mean, columns.mean(1), atol=1e-6)
        assert torch.allclose(reading.covariance, torch.cov(columns), atol=1e-6)
    weight = model[3].weight.detach().double()
    assert torch.allclose(found.readings["3.weight"].norms, weight.square().sum((0, 2, 3)).sqrt())


def test_batches_are_cut_at_the_last_sample_and_no_more_are_drawn(model: nn.Sequential) -> None:
    def stream() -> Any:
        yield images(4)
        yield images(4)
        raise AssertionError("a third batch was drawn")

    graph = slimfast.trace_channels(model, images(1))
    seen: list[tuple[int, int]] = []
    found = slimfast.calibrate(
        model, graph, stream(), samples=6, progress=lambda done, total: seen.append((done, total))
    )
    assert found.samples == 6
    assert [len(args[0]) for args, _ in found.batches] == [4, 2]
    assert seen == [(4, 6), (6, 6)]
    both = torch.cat([images(4), images(4)[:2]])
    assert torch.allclose(found.readings["3.weight"].mean, read_by(model, 3, both).mean(1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype(model: nn.Sequential, dtype: torch.dtype) -> None:
    x = images()
    graph = slimfast.trace_channels(model, x[:1])
    exact = slimfast.calibrate(model, graph, [x]).readings["3.weight"]
    found = slimfast.calibrate(small().to(dtype), graph, [x.to(dtype)]).readings["3.weight"]
    assert found.covariance.dtype == torch.float64
    error = (found.covariance - exact.covariance).norm() / exact.covariance.norm()
    assert error < (1e-5 if dtype == torch.float64 else 0.03)


def test_the_model_stays_as_it_is(model: nn.Sequential) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = slimfast.trace_channels(model, images(1))
    slimfast.calibrate(model, graph, [images()])
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_targets_are_left_out_and_arguments_come_in_any_form() -> None:
    model = Words()
    tokens, scale, labels = torch.randint(11, (6, 5)), torch.rand(6), torch.zeros(6)
    graph = slimfast.trace_channels(model, (tokens, scale))
    plain = slimfast.calibrate(model, graph, [(tokens, scale)]).readings["down.weight"]
    labelled = slimfast.calibrate(model, graph, [(tokens, scale, labels)]).readings["down.weight"]
    assert torch.equal(plain.covariance, labelled.covariance)
    by_name = {"tokens": tokens, "scale": scale}
    graph = slimfast.trace_channels(model, by_name)
    named = slimfast.calibrate(model, graph, [{**by_name, "labels": labels}])
    assert torch.equal(plain.covariance, named.readings["down.weight"].covariance)
    assert sorted(named.batches[0][1]) == ["scale", "tokens"]


def test_what_is_wrong_is_one_line(model: nn.Sequential) -> None:
    graph = slimfast.trace_channels(model, images(1))
    with pytest.raises(slimfast.SlimfastError, match="expected at least one sample, got no batches"):
        slimfast.calibrate(model, graph, [])
    with pytest.raises(slimfast.SlimfastError, match="at least one sample, got an empty one"):
        slimfast.calibrate(model, graph, [images(0)])
    with pytest.raises(ValueError, match="expected at least 1 sample, got 0"):
        slimfast.calibrate(model, graph, [images()], samples=0)
    with pytest.raises(slimfast.SlimfastError, match=r"calibrate: the forward fails: .*channels"):
        slimfast.calibrate(model, graph, [torch.randn(2, 4, 8, 8)])
    with torch.no_grad():
        model[0].bias[2] = math.nan
    with pytest.raises(
        slimfast.SlimfastError, match=r"expected finite values, got nan .*\(read by 3, batch 1\)"
    ):
        slimfast.calibrate(small(), graph, [images(), images() * math.nan])


def test_units_of_several_positions(model: nn.Sequential) -> None:
    graph = slimfast.trace_channels(model, images(1))
    found = {consumer.weight: consumer for consumer in consumers_of(model, graph)[0]}
    calibration = slimfast.calibrate(model, graph, [images()], dtype=torch.float64)
    covariance = unit_covariance(graph, graph["3"], found, calibration)
    # The linear layer reads 16 positions of each of the 4 channels of layer 3.
    columns = read_by(model, 6, images())
    norms = model[6].weight.detach().double().norm(dim=0)
    weighted = (columns - columns.mean(1, keepdim=True)) * norms[:, None]
    units = weighted.reshape(4, -1)
    expected = units @ units.T
    assert covariance is not None
    assert torch.allclose(covariance, expected / expected.trace(), atol=1e-7)


def test_a_plan_asks_for_what_it_needs(model: nn.Sequential) -> None:
    graph = slimfast.trace_channels(model, images(1))
    calibration = slimfast.calibrate(model, graph, [images()])
    with pytest.raises(ValueError, match=r"expected a calibration .* for marginal_gain"):
        slimfast.plan(model, images(1), macs=0.5, allocation="marginal_gain")
    with pytest.raises(ValueError, match="expected allocation explained_variance or marginal_gain, got 'x'"):
        slimfast.plan(model, images(1), macs=0.5, allocation="x")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="a budget of params or macs for marginal_gain, got explained_variance"
    ):
        slimfast.plan(
            model, images(1), explained_variance=0.9, allocation="marginal_gain", calibration=calibration
        )
    plain = slimfast.plan(
        model, images(1), macs=0.5, allocation="explained_variance", calibration=calibration
    )
    assert plain == slimfast.plan(model, images(1), macs=0.5)
    with pytest.raises(ValueError, match="expected a calibration for method 'activations', got none"):
        slimfast.select(model, plain, method="activations")


def test_slim_in_one_call_with_a_calibration(model: nn.Sequential) -> None:
    x = images()
    graph = slimfast.trace_channels(model, x[:1])
    calibration = slimfast.calibrate(model, graph, [x])
    thin = slimfast.slim(
        model, x[:1], macs=0.6, calibration=calibration, select="activations", repair="activations"
    )
    assert slimfast.count_module(thin, x[:1]).macs <= 0.6 * slimfast.count_module(model, x[:1]).macs
    assert set(slimfast.repair_report(thin).fits) == {"3.weight", "6.weight"}


def test_a_calibration_survives_its_file(model: nn.Sequential, tmp_path: Path) -> None:
    graph = slimfast.trace_channels(model, images(1))
    found = slimfast.calibrate(model, graph, [images(4), images(5)])
    found = dataclasses.replace(found, left={"a.weight": "it is not read"})
    slimfast.save_calibration(found, tmp_path / "c.safetensors")
    back = slimfast.load_calibration(tmp_path / "c.safetensors")
    assert (back.samples, back.left) == (9, {"a.weight": "it is not read"})
    assert [len(args[0]) for args, _ in back.batches] == [4, 5]
    assert torch.equal(back.batches[1][0][0], found.batches[1][0][0])
    for name, reading in found.readings.items():
        for part in ("mean", "covariance", "norms"):
            assert torch.equal(getattr(back.readings[name], part), getattr(reading, part))
    slimfast.save_spectra(slimfast.measure_spectra(model, graph), tmp_path / "s.safetensors")
    with pytest.raises(slimfast.SlimfastError, match=r"s\.safetensors: expected a document of kind"):
        slimfast.load_calibration(tmp_path / "s.safetensors")
    with pytest.raises(slimfast.SlimfastError, match="cannot read"):
        slimfast.load_calibration(tmp_path / "nothing")


class Writing(nn.Module):
    """Writes into its argument and into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.last(self.first(x.mul_(2)))
        return logits


def test_a_forward_that_writes_leaves_model_batches_and_calibration_alone() -> None:
    model, batch = Writing().eval(), torch.ones(4, 3)
    graph = slimfast.trace_channels(model, batch)
    found = slimfast.calibrate(model, graph, [batch])
    slimfast.error_curves(model, graph, found)
    plan = slimfast.plan(model, batch, explained_variance=0.5)
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=found)
    assert torch.equal(batch, torch.ones(4, 3))
    assert torch.equal(found.batches[0][0][0], torch.ones(4, 3))
    assert model.calls == thin.calls == 0
    with torch.no_grad():
        seen = model.first(torch.full((4, 3), 2.0)).double()
    assert torch.allclose(found.readings["last.weight"].mean, seen.mean(0))


def test_a_fault_inside_is_not_blamed_on_the_activations(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on the forward, inside of which it happens."""

    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("a fault")

    graph = slimfast.trace_channels(model, images(1))
    monkeypatch.setattr("slimfast.calibration.measuring.add_moments_unseen", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        slimfast.calibrate(model, graph, [images()])


def test_a_fault_inside_is_not_blamed_on_the_file(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(document: Any) -> None:
        raise ValueError("a fault")

    graph = slimfast.trace_channels(model, images(1))
    slimfast.save_calibration(slimfast.calibrate(model, graph, [images()]), tmp_path / "c.safetensors")
    monkeypatch.setattr("slimfast.graph.recording.inputs.InputSpec.from_json", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        slimfast.load_calibration(tmp_path / "c.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_stay_as_they_are(dtype):
    """Their norms are of float64, in which a weight of that type is no copy."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 4, dtype=dtype)
    slimfast.calibrate(model, slimfast.trace_channels(model, x), [x])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
