"""``slim --data``: some training samples choose widths and units and repair, unless told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cli_cases import NET, needs

import slimfast
from slimfast.checkpoints.thin_files import load
from slimfast.cli import main
from slimfast.cli.data import Data, Loading, load_data
from slimfast.cli.models import build_model
from slimfast.cli.slimming import calibrated_by

needs_accelerate = needs("accelerate")
SLIM = ["slim", NET, "--input", "3x6x6", "--macs", "0.5", "--epochs", "1", "-o"]
EXAMPLE = torch.zeros(1, 3, 6, 6, device="cpu")


@pytest.fixture
def arrays(weights):
    """Write 40 samples, in the order of their first pixel."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.normal(size=(40, 3, 6, 6)).astype(np.float32)
    np.savez("data.npz", image=images, label=generator.integers(0, 4, 40))
    return ["--weights", weights, "--data", "data.npz", "--batch-size", "8"]


def thin_of(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/thin.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        a.shape == other[name].shape and torch.equal(a, other[name]) for name, a in one.items()
    )


@needs_accelerate
def test_the_samples_decide_as_they_do_in_python(arrays, weights, capsys):
    assert main([*SLIM, "out", *arrays]) == 0
    assert "off by" in capsys.readouterr().err
    model = build_model(NET)
    model.load_state_dict(load_file(weights))
    model.eval()
    data = load_data("data.npz", model, loading=Loading(batch_size=8))
    graph = slimfast.trace_channels(model, EXAMPLE)
    torch.manual_seed(0)
    calibration = slimfast.calibrate(model, graph, data.train, samples=512)
    plan = slimfast.plan(model, EXAMPLE, graph=graph, macs=0.5, calibration=calibration)
    assert slimfast.Plan.load("out/plan.json").widths() == plan.widths()
    assert plan.allocation == "marginal_gain"
    thin = slimfast.prune_channels(model, plan, calibration=calibration, for_training=True)
    assert same(thin_of("out"), {n: t.detach() for n, t in thin.state_dict().items()})


@needs_accelerate
def test_the_same_samples_are_taken_each_time_and_none_where_none_are_wanted(arrays):
    assert main([*SLIM, "one", *arrays, "--samples", "16"]) == 0
    assert main([*SLIM, "two", *arrays, "--samples", "16"]) == 0
    assert main([*SLIM, "all", *arrays]) == 0
    assert main([*SLIM, "none", *arrays, "--samples", "0"]) == 0
    assert same(thin_of("one"), thin_of("two"))
    assert same(load_file("one/distilled.safetensors"), load_file("two/distilled.safetensors"))
    assert not same(thin_of("one"), thin_of("all"))
    plans = {name: slimfast.Plan.load(f"{name}/plan.json") for name in ("one", "none")}
    assert {name: plan.allocation for name, plan in plans.items()} == {
        "one": "marginal_gain",
        "none": "explained_variance",
    }


@needs_accelerate
def test_what_is_chosen_by_hand_stays(arrays):
    assert main([*SLIM, "large", *arrays]) == 0
    assert main([*SLIM, "small", *arrays, "--select", "activations", "--repair", "none"]) == 0
    assert not same(thin_of("large"), thin_of("small"))
    wide = build_model(NET)
    thin = load("small/thin.safetensors", wide)
    for change in slimfast.manifest(thin).moved.values():
        assert change != ("repair",)
    repaired = slimfast.manifest(load("large/thin.safetensors", build_model(NET))).moved
    assert any("repair" in change for change in repaired.values())


def test_batches_that_can_be_read_once_are_left_to_the_training(weights, capsys):
    model = build_model(NET).eval()
    data = Data(train=iter([torch.randn(4, 3, 6, 6)]), evaluate=None)
    how = {"seed": 0, "backend": "auto", "progress": lambda done, total: None}
    assert calibrated_by(data, model, EXAMPLE, 8, {}, **how) is None
    assert "not calibrated: the training batches can be read once only" in capsys.readouterr().err
    assert len(list(data.train)) == 1


def test_batches_that_do_not_fit_the_example_are_told_of(weights, capsys):
    model = build_model(NET).eval()
    data = Data(train=[torch.randn(4, 3, 6)], evaluate=None)
    how = {"seed": 0, "backend": "auto", "progress": lambda done, total: None}
    assert calibrated_by(data, model, EXAMPLE, 8, {}, **how) is None
    told = capsys.readouterr().err
    assert told.startswith("not calibrated, so that the weights alone decide (--samples 0 asks for that): ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", ["calibrate", "slim"])
def test_batches_by_name_fit_an_example_by_place(weights, capsys, command):
    if command == "slim":
        pytest.importorskip("accelerate")
    Path("named.py").write_text(
        "from nets_of_a_test import batches\n"
        "def data():\n    return [{'x': x, 'labels': y} for x, y in batches()]\n"
    )
    output = {"calibrate": ["-o", "c.safetensors"], "slim": [*SLIM[4:], "out"]}[command]
    data = ["--weights", weights, "--input", "3x6x6", "--data", "named:data"]
    assert main([command, NET, *data, *output]) == 0
    told = capsys.readouterr()
    assert "not calibrated" not in told.err
    if command == "slim":
        assert slimfast.Plan.load("out/plan.json").allocation == "marginal_gain"
    else:
        assert "32 samples, read by 2 layers" in told.out


def test_the_order_of_the_training_stays_as_it_was(weights):
    model = build_model(NET).eval()
    samples = torch.utils.data.TensorDataset(torch.randn(24, 3, 6, 6))
    data = Data(train=torch.utils.data.DataLoader(samples, batch_size=4, shuffle=True), evaluate=None)
    how = {"backend": "auto", "progress": lambda done, total: None}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = calibrated_by(data, model, EXAMPLE, 8, {}, seed=1, **how)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    two = calibrated_by(data, model, EXAMPLE, 8, {}, seed=1, **how)
    other = calibrated_by(data, model, EXAMPLE, 8, {}, seed=2, **how)
    means = [next(iter(found.readings.values())).mean for found in (one, two, other)]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


@needs_accelerate
def test_samples_of_the_data_choose_layers_too(arrays, capsys):
    # This network has none to drop: the refusal is by the network, not by the want of samples.
    assert main([*SLIM, "out", *arrays, "--depth", "1"]) != 0
    assert "got neither" not in capsys.readouterr().err
    assert main([*SLIM, "out", *arrays, "--depth", "1", "--samples", "0"]) != 0
    assert "expected --data, or --calibration" in capsys.readouterr().err
    assert not Path("out/thin.safetensors").exists()
