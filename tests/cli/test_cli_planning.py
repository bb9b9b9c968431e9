"""The command line's spectra and plans: what is printed, drawn and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli_cases import NET, NETS, needs

from slimfast.cli import main
from slimfast.graph.recording.inputs import InputSpec
from slimfast.plans import Plan
from slimfast.spectra import load_spectra, measure_spectra, save_spectra

pytestmark = pytest.mark.usefixtures("workshop")


def test_spectra_of_a_file_shows_the_widths_of_every_matrix(weights, capsys):
    assert (
        main(["spectra", weights, "--json", "--explained-variance", "0.5", "--explained-variance", "0.9"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    spectra = measure_spectra(weights)
    assert set(found) == set(spectra) == {"conv1.weight", "conv2.weight", "fc.weight"}
    for name, spectrum in spectra.items():
        assert [w["width"] for w in found[name]["widths"]] == [
            spectrum.width(explained_variance=tau) for tau in (0.5, 0.9)
        ]
    assert main(["spectra", weights]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in found)


def test_spectra_of_a_model_are_saved_and_planned_from(weights, capsys):
    model = [NET, "--weights", weights, "--input", "3x6x6"]
    assert main(["spectra", *model, "-o", "s.safetensors"]) == 0
    assert "wrote s.safetensors" in capsys.readouterr().err
    saved = load_spectra("s.safetensors")
    assert {s.n for s in saved.values()} == {8, 16}
    budget = ["--macs", "0.4", "--json"]
    assert main(["plan", *model, *budget]) == 0
    measured = capsys.readouterr().out
    assert main(["plan", *model, *budget, "--spectra", "s.safetensors"]) == 0
    assert capsys.readouterr().out == measured
    # What the file says counts: a spectrum of one direction needs one unit.
    flat = {
        name: replace(s, eigenvalues=s.eigenvalues * (np.arange(len(s.eigenvalues)) == 0))
        for name, s in saved.items()
    }
    save_spectra(
        {name: replace(s, trace=float(s.eigenvalues.sum())) for name, s in flat.items()}, "s.safetensors"
    )
    arguments = ["plan", *model, "--explained-variance", "0.9", "--json", "--spectra", "s.safetensors"]
    assert main(arguments) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 1, "conv2": 1}


def test_plan_prints_the_table_and_writes_the_same_plan(weights, capsys):
    arguments = [
        "plan",
        NET,
        "--weights",
        weights,
        "--input",
        "3x6x6",
        "--params",
        "0.5",
        "--multiple-of",
        "2",
    ]
    assert main([*arguments, "-o", "plan.json"]) == 0
    printed = capsys.readouterr()
    plan = Plan.load("plan.json")
    assert printed.out == f"{plan}\n"
    assert plan.cost_after.params <= 0.5 * plan.cost_before.params
    assert all(width % 2 == 0 for width in plan.widths().values())
    assert plan.inputs == InputSpec.of(torch.zeros(1, 3, 6, 6))
    assert main([*arguments, "--json"]) == 0
    assert Plan.from_json(capsys.readouterr().out) == plan


def test_plan_takes_a_multiple_for_each_pattern(weights, capsys):
    arguments = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--params", "0.5", "--json"]
    assert main([*arguments, "--multiple-of", "conv1*=3", "--multiple-of", "4"]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert plan.multiple_of == {"conv1*": 3, "*": 4}
    assert plan.widths()["conv1"] in (3, 6, 8)
    assert plan.widths()["conv2"] % 4 == 0
    assert main([*arguments, "--multiple-of", "conv2=4"]) == 0
    assert Plan.from_json(capsys.readouterr().out).multiple_of == {"conv2": 4}


def test_plan_by_hand_and_by_name(weights, capsys):
    arguments = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--json"]
    assert main([*arguments, "--explained-variance", "0.05", "--exclude", "conv1*", "--min-width", "3"]) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 8, "conv2": 3}
    floors = ["--min-width", "conv1=0.5", "--min-width", "3"]
    assert main([*arguments, "--explained-variance", "0.05", *floors]) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 4, "conv2": 3}
    assert main([*arguments, "--explained-variance", "0.05", "--include", "conv1*"]) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 1, "conv2": 16}
    assert main([*arguments, "--width", "conv1*=5", "--width", "conv2*=0.25"]) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 5, "conv2": 4}


@needs("matplotlib")
def test_plan_explains_and_draws(weights, capsys):
    arguments = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "--plot", "p.png"]
    assert main([*arguments, "--explain"]) == 0
    out = capsys.readouterr().out
    assert "removed together in" in out
    assert "conv2.weight dim 1" in out
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_integer_inputs(capsys):
    arguments = [
        "slim",
        f"{NETS}:Tokens",
        "--random-weights",
        "--input",
        "2x5:int64:11",
        "--explained-variance",
        "0.8",
        "--seed",
        "1",
    ]
    assert main(arguments) == 0
    assert Plan.load("slim/plan.json").inputs.args[0].high == 10


@needs("timm")
def test_timm_knows_its_own_input(capsys):
    assert main(["plan", "timm:resnet18", "--random-weights", "--macs", "0.5", "--json"]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert plan.inputs.args[0].shape == (1, 3, 224, 224)
    assert plan.cost_after.macs <= 0.5 * plan.cost_before.macs


def test_a_plan_keeps_what_masks_leave(weights, capsys):
    state = load_file(weights)
    state["bn1.weight"][:3] = 0
    state["bn1.bias"][:3] = -1
    save_file(state, "masked.safetensors")
    model = [NET, "--weights", "masked.safetensors", "--input", "3x6x6"]
    assert main(["plan", *model, "--from-masks", "-o", "p.json"]) == 0
    assert Plan.load("p.json").groups[0].keep == (3, 4, 5, 6, 7)
    assert main(["prune", NET, "p.json", "--weights", "masked.safetensors", "-o", "thin.safetensors"]) == 0
    capsys.readouterr()
    assert main(["plan", *model, "--from-masks", "--macs", "0.5"]) == 2
    assert "--from-masks: expected --include or --exclude, got --macs" in capsys.readouterr().err
    assert main(["plan", *model, "--from-masks", "--outputs", "0"]) == 2
    assert "--from-masks: expected --include or --exclude, got --outputs" in capsys.readouterr().err
    assert main(["plan", NET, "--weights", weights, "--input", "3x6x6", "--from-masks"]) == 2
    assert "expected units that can go, got none" in capsys.readouterr().err


ALSO = """
from torch import nn
import torch

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.b = nn.Linear(4, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x=None, y=None):
        return self.out(torch.relu(self.a(x) if y is None else self.b(y)))
"""


def test_other_calls_are_traced_too(weights, capsys):
    Path("two_calls_of_a_test.py").write_text(ALSO)
    model = ["two_calls_of_a_test:Two", "--random-weights", "--input", "x=6", "--params", "0.6"]
    assert main(["slim", *model, "--also", "y=4", "-o", "out"]) == 0
    tensors = load_file("out/thin.safetensors")
    assert tensors["a.weight"].shape[0] == tensors["b.weight"].shape[0] == tensors["out.weight"].shape[1] < 16
    assert main(["plan", *model, "--also", "y=4", "-o", "both.json"]) == 0
    assert [list(call.kwargs) for call in Plan.load("both.json").also] == [["y"]]
    capsys.readouterr()
    assert main(["plan", *model[:4], "--from-masks", "--also", "y=4"]) == 2
    assert "--from-masks: expected --include or --exclude, got --also" in capsys.readouterr().err


def test_a_factory_of_what_holds_networks_is_told_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pipes_of_a_test.py").write_text(
        "from torch import nn\n\nclass Pipe:\n    def __init__(self):\n        self.unet = nn.Linear(2, 2)\n"
    )
    assert main(["plan", "pipes_of_a_test:Pipe", "--input", "2", "--random-weights", "--macs", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "expected a torch.nn.Module, got Pipe, which holds .unet (Linear): give it" in said
