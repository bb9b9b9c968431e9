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
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.cli_cases import NET, NETS, files, needs_accelerate

from slimfast import cli
from slimfast.checkpoints.thin_files import load
from slimfast.cli import digits_demo as demo
from slimfast.cli import main, options
from slimfast.cli.models import build_model
from slimfast.plans import Plan
from slimfast.pruning import selection
from slimfast.pruning.manifests import manifest

pytestmark = pytest.mark.usefixtures("workshop")


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
    commands = ("spectra", "plan", "explain", "prune", "distill", "slim", "export", "eval", "doctor", "demo")
    assert [name for name in commands if name not in shown] == []
    assert main([]) == 0
    assert capsys.readouterr().out == shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slimfast ")


def test_the_shell_completes_commands(monkeypatch, capsys):
    monkeypatch.setenv("_SLIMFAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "slimfast ex")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["explain", "export"]


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
    arguments = [
        "plan",
        NET,
        "--random-weights",
        "--input",
        "3x6x6",
        "--macs",
        "0.5",
        "--json",
        "-o",
        "plan.json",
    ]
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
