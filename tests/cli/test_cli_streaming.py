"""`slimfast spectra`, `plan` and `prune` from files that stay on the disk, resumed, in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli_cases import NET, NETS, files

from slimfast.cli import main
from slimfast.cli.models import Built, build
from slimfast.storage.weights import read_tensors

PLAN = ["plan", NET, "--input", "3x6x6", "--macs", "0.5"]


@pytest.mark.usefixtures("workshop")
def test_a_streamed_plan_is_the_plan(weights: str) -> None:
    assert main([*PLAN, "--weights", weights, "-o", "a.json"]) == 0
    for _ in range(2):
        assert main([*PLAN, "--weights", weights, "--stream", "--resume", "side", "-o", "b.json"]) == 0
        assert Path("b.json").read_text() == Path("a.json").read_text()
    assert files() == {weights, "a.json", "b.json", "side"}


@pytest.mark.usefixtures("workshop")
def test_streamed_spectra_are_the_spectra(weights: str) -> None:
    common = ["spectra", NET, "--input", "3x6x6", "--weights", weights]
    assert main([*common, "-o", "a.safetensors"]) == 0
    assert main([*common, "--stream", "--resume", "side", "-o", "b.safetensors"]) == 0
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    assert main(["spectra", weights, "--resume", "side"]) == 0


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stream"], "--stream: expected --weights and --device cpu, got None and cpu"),
        (
            ["--random-weights", "--resume", "nowhere/side"],
            "cannot write nowhere/side: the folder nowhere does not exist",
        ),
    ],
)
def test_what_cannot_be(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, *arguments]) == 2
    assert capsys.readouterr().err == f"slimfast: {reason}\n"


@pytest.mark.usefixtures("workshop")
def test_a_launch_of_two_processes_writes_the_plan_once(weights: str) -> None:
    assert main([*PLAN, "--weights", weights, "-o", "a.json"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "slimfast", *PLAN, "--weights", weights, "--stream", "--json", "-o", "b.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == Path("a.json").read_text()
    assert Path("b.json").read_text() == done.stdout
    assert done.stderr.count("wrote b.json") == 1


def shards(weights: str) -> str:
    """The weights in two files and an index."""
    state = load_file(weights)
    names = list(state)
    files = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, file)
    weight_map = {name: file for file, held in files.items() for name in held}
    Path("w.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return "w.safetensors.index.json"


@pytest.mark.usefixtures("workshop")
def test_shards_are_cut_to_shards_and_distilled_from(
    weights: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = shards(weights)
    assert main([*PLAN, "--weights", index, "--stream", "-o", "plan.json"]) == 0
    prune = ["prune", NET, "plan.json", "--select", "geometric_median"]
    assert main([*prune, "--weights", weights, "-o", "thin.safetensors", "--json"]) == 0
    costs = capsys.readouterr().out.partition("{\n")[2]
    with monkeypatch.context() as patch:
        # The wide model must not come into memory.
        patch.setattr("slimfast.cli.options.build", only_meta)
        patch.setattr("slimfast.cli.thinning.build", only_meta)
        assert main([*prune, "--weights", index, "--stream", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out.partition("{\n")[2].endswith(costs)
    assert "wrote thin/model.safetensors.index.json" in printed.err
    assert {path.name for path in Path("thin").iterdir()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    expected, found = read_tensors("thin.safetensors"), read_tensors("thin/model.safetensors.index.json")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert main([*prune, "--weights", index, "--stream", "-o", "other"]) == 0
    distill = ["--weights", weights, "--data", f"{NETS}:data", "--epochs", "1"]
    for thin in ("thin", "thin.safetensors"):
        assert main(["distill", NET, thin, *distill, "-o", f"{thin}.out.safetensors"]) == 0
    first, second = (read_tensors(f"{thin}.out.safetensors") for thin in ("thin", "thin.safetensors"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("workshop")
def test_shards_are_calibrated_planned_and_repaired(weights: str) -> None:
    index = shards(weights)
    calibrate = ["calibrate", *PLAN[1:4], "--data", f"{NETS}:data", "--samples", "40"]
    prune = ["prune", NET, "plan.json", "--repair", "activations", "--select", "activations"]
    assert main([*calibrate, "--weights", weights]) == 0
    known = ["--calibration", "calibration.safetensors"]
    assert main([*PLAN, "--weights", weights, *known, "-o", "wanted.json"]) == 0
    assert main([*calibrate, "--weights", index, "--stream", "-o", "state"]) == 0
    assert main([*PLAN, "--weights", index, "--stream", "--calibration", "state", "-o", "plan.json"]) == 0
    assert Path("plan.json").read_text() == Path("wanted.json").read_text()
    assert main([*prune, "--weights", weights, *known, "-o", "thin.safetensors"]) == 0
    assert main([*prune, "--weights", index, "--stream", "--calibration", "state"]) == 0
    expected, found = read_tensors("thin.safetensors"), read_tensors("thin/model.safetensors.index.json")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def only_meta(name: str, **how: Any) -> Built:
    assert how["device"] == "meta"
    assert "weights" not in how
    return build(name, **how)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--stream: expected --weights and --device cpu, got None and cpu"),
        (["--weights", "w.safetensors", "--device", "meta"], "got w.safetensors and meta"),
        (["--weights", "w.safetensors", "--repair", "activations"], "expected a calibration for kind"),
        (["--weights", "w.safetensors", "--repair-damping", "1"], "a damping is for repair from activations"),
        (["--weights", "w.safetensors", "--export", "t.onnx"], "--output, got --export"),
        (["--weights", "w.safetensors", "--select", "activations"], "expected a calibration for method"),
        (["--weights", "w.safetensors", "-o", "plan.json"], "cannot make the folder plan.json"),
        (["--weights", "missing.safetensors"], "cannot read missing.safetensors: no such file"),
    ],
)
def test_what_cannot_be_cut_from_the_disk(
    plan: str,
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files()
    assert main(["prune", NET, plan, "--stream", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slimfast: ")
    assert reason in error
    assert error.count("\n") == 1
    assert files() == before
