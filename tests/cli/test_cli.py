"""The command line: what each command prints and writes."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.cli_cases import NET, NETS, files, needs, needs_accelerate

from slimfast import cli
from slimfast.checkpoints.thin_files import load
from slimfast.cli import digits_demo as demo
from slimfast.cli import main, options
from slimfast.cli.models import build_model
from slimfast.graph.recording.inputs import InputSpec
from slimfast.plans import Plan
from slimfast.pruning import selection
from slimfast.pruning.manifests import manifest
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


def test_plan_by_hand_and_by_name(weights, capsys):
    arguments = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--json"]
    assert main([*arguments, "--explained-variance", "0.05", "--exclude", "conv1*", "--min-width", "3"]) == 0
    assert Plan.from_json(capsys.readouterr().out).widths() == {"conv1": 8, "conv2": 3}
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


def test_prune_selects_as_told(plan, weights):
    model, found = build_model(NET, weights=weights), Plan.load(plan)
    chosen = {}
    for method in ("l1", "pivoted_cholesky"):
        arguments = ["prune", NET, plan, "--weights", weights, "--select", method, "-o", "t.safetensors"]
        assert main(arguments) == 0
        kept = manifest(load("t.safetensors", build_model(NET))).keeps["conv2.weight"][0]
        keep = {g.name: g.keep for g in selection.select(model, found, method=method).groups}["conv2"]
        assert tuple(kept) == keep
        chosen[method] = keep
    assert chosen["l1"] != chosen["pivoted_cholesky"]


def test_prune_writes_the_network_that_load_gives_back(plan, weights, capsys):
    assert (
        main(
            [
                "prune",
                NET,
                plan,
                "--weights",
                weights,
                "--select",
                "pivoted_cholesky",
                "-o",
                "t.safetensors",
                "--json",
            ]
        )
        == 0
    )
    costs = json.loads(capsys.readouterr().out)
    found = Plan.load(plan)
    assert costs["before"]["macs"] == found.cost_before.macs
    assert costs["after"] == {
        "params": found.cost_after.params,
        "macs": found.cost_after.macs,
        "bytes": found.cost_after.bytes,
    }
    kept = load_file("t.safetensors")
    assert sum(t.numel() for name, t in kept.items() if "running" not in name and "num" not in name) == (
        found.cost_after.params
    )


@needs_accelerate
def test_distill_trains_and_cleans_up(thin, weights, capsys):
    arguments = [
        "distill",
        NET,
        thin,
        "--weights",
        weights,
        "--data",
        f"{NETS}:data",
        "--epochs",
        "2",
        "--lr",
        "0.01",
    ]
    assert main([*arguments, "-o", "d.safetensors", "--json"]) == 0
    history = json.loads(capsys.readouterr().out)
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert history["epochs"][0]["score"] is not None
    before, after = load_file(thin), load_file("d.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert "d.safetensors.training" not in files()


@needs_accelerate
def test_slim_does_all_of_it(weights, capsys):
    arguments = ["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "-o", "out"]
    assert main([*arguments, "--data", f"{NETS}:data", "--epochs", "1"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {
        "plan.json",
        "thin.safetensors",
        "distilled.safetensors",
    }
    assert capsys.readouterr().out == f"{Plan.load('out/plan.json')}\n"


def test_the_thin_network_is_exported_and_computes_the_same(plan, weights):
    arguments = ["prune", NET, plan, "--weights", weights, "-o", "t.safetensors", "--export", "t.pt2"]
    assert main(arguments) == 0
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.export.load("t.pt2").module()(x), load("t.safetensors", build_model(NET))(x)
    )


def test_slim_is_plan_and_prune(thin, plan, weights):
    assert main(["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "-o", "out"]) == 0
    assert Path("out/plan.json").read_text() == Path(plan).read_text()
    assert Path("out/thin.safetensors").read_bytes() == Path(thin).read_bytes()


def test_integer_inputs(capsys):
    arguments = [
        "slim",
        f"{NETS}:Tokens",
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
    assert main(["plan", "timm:resnet18", "--macs", "0.5", "--json"]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert plan.inputs.args[0].shape == (1, 3, 224, 224)
    assert plan.cost_after.macs <= 0.5 * plan.cost_before.macs


def test_bench(weights, capsys):
    arguments = ["bench", NET, "--weights", weights, "--repeats", "1", "--backend", "reference"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in rows} == {"reference"}
    assert main(arguments) == 0
    assert "eigvalsh" in capsys.readouterr().out


def test_demo_shows_its_table_or_json_and_says_what_it_does(monkeypatch, capsys):
    found = demo.Demo((demo.Row("teacher", 0.5, 10, 20, 3.0),), 1.0, {"seed": 7})
    asked = []

    def run_demo(folder: Path, *, tell, **settings) -> demo.Demo:
        asked.append((folder, settings))
        tell("training")
        return found

    monkeypatch.setattr("slimfast.cli.machine.run_demo", run_demo)
    assert main(["demo", "-o", "out", "--seed", "7", "--epochs", "1", "--teacher-epochs", "2"]) == 0
    assert asked == [(Path("out"), {"seed": 7, "epochs": 1, "teacher_epochs": 2})]
    printed = capsys.readouterr()
    assert "50.0 %" in printed.out
    assert printed.err.splitlines()[0] == "training"
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["macs"] == 20


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"][0]["chosen"]
    assert main(["doctor"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_the_module_without_arguments_is_the_doctor(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slimfast"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("slimfast", run_name="__main__")
    assert exit.value.code == 0
    assert "which backend runs an op" in capsys.readouterr().out


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    commands = ("spectra", "plan", "prune", "distill", "slim", "bench", "doctor", "demo")
    assert [name for name in commands if name not in shown] == []
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slimfast ")


def test_the_methods_are_those_of_select():
    assert {method.value for method in options.Method} == set(typing.get_args(selection.Method))


# In a process of its own.


def command(*arguments: str) -> dict[str, Any]:
    """What `subprocess` needs to run a command of the package under test."""
    path = os.pathsep.join([str(Path(cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, "-m", "slimfast", *arguments],
        "env": os.environ | {"PYTHONPATH": path},
        "text": True,
    }


def test_a_process_prints_json_alone_on_stdout_and_finds_the_folders_module():
    arguments = ["plan", NET, "--input", "3x6x6", "--macs", "0.5", "--json", "-o", "plan.json"]
    done = subprocess.run(**command(*arguments), capture_output=True, check=True)
    assert done.stdout == Path("plan.json").read_text()
    assert done.stderr == "wrote plan.json\n"


@needs_accelerate
def test_ctrl_c_during_distillation_keeps_the_training_and_resume_ends_it(thin, weights):
    arguments = ["distill", NET, thin, "--weights", weights, "--epochs", "1", "-o", "d.safetensors"]
    arguments += ["--data", f"{NETS}:slow_data"]
    training = subprocess.Popen(**command(*arguments), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not Path("step").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    training.send_signal(signal.SIGINT)
    _, error = training.communicate(timeout=60)
    assert training.returncode == 130
    assert "go on with --resume d.safetensors.training\n" in error
    assert "Traceback" not in error
    assert not Path("d.safetensors").exists()
    assert main([*arguments, "--resume", "d.safetensors.training"]) == 0
    with safe_open("d.safetensors", framework="pt") as file:
        assert "slimfast" in file.metadata()
    assert not Path("d.safetensors.training").exists()
