"""``slim --rounds``: cut, distil, cut again, and go on where it was stopped; ``--for-training``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cli_cases import NET, NETS, needs

import slimfast
from slimfast.checkpoints.thin_files import load
from slimfast.cli import gradual_cut, main
from slimfast.cli.models import build_model

needs_accelerate = needs("accelerate")
SLIM = ["slim", NET, "--input", "3x6x6", "--macs", "0.4", "-o", "out"]
ROUNDS = [*SLIM, "--data", f"{NETS}:data", "--epochs", "1", "--rounds", "2", "--lr", "0.01"]


@needs_accelerate
def test_slim_cuts_in_rounds_and_distils_after_each(weights, capsys):
    assert main([*ROUNDS, "--weights", weights, "--json"]) == 0
    told = capsys.readouterr()
    costs = json.loads(told.out)
    assert costs["after"]["macs"] <= 0.4 * costs["before"]["macs"]
    assert "round 1 of 2" in told.err
    assert "round 2 of 2" in told.err
    assert {path.name for path in Path("out").iterdir()} == {"rounds", "distilled.safetensors"}
    thin = load("out/distilled.safetensors", build_model(NET))
    plans = [slimfast.Plan.load(f"out/rounds/plan-{number}.json") for number in (1, 2)]
    assert plans[0].cost_after.macs == plans[1].cost_before.macs > plans[1].cost_after.macs
    assert slimfast.count_module(thin, torch.zeros(1, 3, 6, 6)).macs == costs["after"]["macs"]


@needs_accelerate
@pytest.mark.parametrize("stop_at", [1, 2])
def test_the_same_command_goes_on_to_the_same_network(weights, monkeypatch, capsys, stop_at):
    command = [*ROUNDS, "--weights", weights]
    assert main(command) == 0
    whole = load_file("out/distilled.safetensors")
    command[command.index("out")] = "again"
    train, calls = gradual_cut.train, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(gradual_cut, "train", stopped)
    assert main(command) == 130
    monkeypatch.setattr(gradual_cut, "train", train)
    capsys.readouterr()
    assert main(command) == 0
    told = capsys.readouterr().err
    assert ("round 1 of 2" in told) == (stop_at == 1)
    again = load_file("again/distilled.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "expected --data"),
        (["--data", f"{NETS}:data", "--select", "l1"], "--select"),
        (["--data", f"{NETS}:data", "--repair-damping", "1"], "--repair-damping"),
        (["--data", f"{NETS}:data", "--resume", "x"], "--resume"),
    ],
)
def test_what_rounds_decide_is_not_given(weights, capsys, more, words):
    assert main([*SLIM, "--weights", weights, "--rounds", "2", *more]) == 2
    assert words in capsys.readouterr().err


def test_one_option_chooses_what_a_training_starts_from(weights, capsys):
    calibrate = ["calibrate", NET, "--weights", weights, "--input", "3x6x6", "--data", f"{NETS}:data"]
    assert main([*calibrate, "-o", "c.safetensors"]) == 0
    command = [*SLIM, "--weights", weights, "--calibration", "c.safetensors"]
    assert main([*command, "--for-training"]) == 0
    by_one = load_file("out/thin.safetensors")
    by_hand = ["--select", "lookahead", "--repair", "activations", "--repair-damping", "1"]
    assert main([*command, *by_hand]) == 0
    assert all(
        torch.equal(tensor, by_one[name]) for name, tensor in load_file("out/thin.safetensors").items()
    )
    assert main([*command, "--for-training", "--repair", "weights"]) == 2
    assert "for_training" in capsys.readouterr().err
