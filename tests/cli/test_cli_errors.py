"""The command line on bad input: exit status 2, one line that names what is wrong, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli_cases import NET, NETS, files, needs_accelerate

from slimfast.cli import main
from slimfast.cli.models import build_model
from slimfast.errors import ArgumentError, ArgumentTypeError
from slimfast.plans import Plan

pytestmark = pytest.mark.usefixtures("workshop")


def error_of(arguments: list[str], capsys) -> str:
    """The one line of a command that must fail with status 2, write nothing and print nothing else."""
    before = files()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("slimfast: ")
    assert printed.err.count("\n") == 1
    assert files() == before
    return printed.err


RANDOM = ["--macs", "0.5", "--random-weights"]
PLAN = ["plan", NET, "--random-weights", "--input", "3x6x6"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["plan"], "MODEL"),
        ([*PLAN, "--macs", "half"], "Invalid value for '--macs'"),
        (PLAN, "expected a budget: --macs, --params, --latency, --peak-memory or --explained-variance"),
        (
            [*PLAN, "--macs", "0.5", "--width", "conv1"],
            "expected PATTERN=WIDTH, as in 'layer1.*=16', got 'conv1'",
        ),
        ([*PLAN, "--macs", "0.5", "--width", "conv1*=0"], "got 0 (conv1"),
        ([*PLAN, "--explained-variance", "1.5"], "expected explained_variance in (0, 1], got 1.5"),
        ([*PLAN, "--explained-variance", "0"], "expected explained_variance in (0, 1], got 0"),
        ([*PLAN, "--macs", "-1"], "expected macs in (0, 1] or up to 100% as a share"),
        ([*PLAN, "--macs", "0.5", "--multiple-of", "0"], "multiple_of to be an integer >= 1, got 0"),
        ([*PLAN, "--macs", "0.5", "--multiple-of", "8x"], "expected NUMBER or PATTERN=NUMBER, got '8x'"),
        ([*PLAN, "--macs", "0.5", "--multiple-of", "=8"], "expected NUMBER or PATTERN=NUMBER, got '=8'"),
        ([*PLAN, "--macs", "0.5", "--multiple-of", "conf1=8"], "no group matches 'conf1' (did you mean"),
        (
            [*PLAN, "--macs", "0.5", "--multiple-of", "8", "--multiple-of", "4"],
            "a number for all groups is given twice",
        ),
        ([*PLAN, "--macs", "150%"], "expected macs in (0, 1] or up to 100% as a share"),
        ([*PLAN, "--macs", "0.5", "--outputs", "boxes"], "outputs: no output is 'boxes'"),
        ([*PLAN, "--macs", "0.5", "--min-width", "0"], "expected WIDTH or PATTERN=WIDTH, as 16 or"),
        ([*PLAN, "--macs", "0.5", "--min-width", "half"], "layer1.*=0.25, got 'half'"),
        ([*PLAN, "--macs", "0.5", "--min-width", "=3"], "got '=3'"),
        ([*PLAN, "--macs", "0.5", "--min-width", "conf1=3"], "no group matches 'conf1' (did you mean"),
        ([*PLAN, "--macs", "0.5", "--min-width", "3", "--min-width", "4"], "is given twice"),
        ([*PLAN, "--macs", "0.5", "--multiple-of", "32"], "what may help: a smaller multiple_of"),
        ([*PLAN, "--macs", "0.5", "--exclude", "convv1"], "no group matches 'convv1'"),
        (
            ["plan", NET, "--macs", "0.5", "--random-weights"],
            "expected an input, for example --input 3x224x224",
        ),
        (
            ["plan", NET, "--macs", "0.5", "--random-weights", "--input", "3,6"],
            "expected [NAME[.KEY]=]SHAPE[:DTYPE",
        ),
        (["plan", NET, "--macs", "0.5", "--random-weights", "--input", "1x6x6"], "conv1"),
        (
            ["plan", f"{NETS}:Broken", "--random-weights", "--macs", "0.5", "--input", "3x6x6"],
            "a size does not",
        ),
        (["plan", f"{NETS}:Missing", "--macs", "0.5"], f"{NETS} has no 'Missing'"),
        ([*PLAN, "--macs", "0.5", "--weights", "no.safetensors"], "no.safetensors: no such file"),
        ([*PLAN, "--macs", "0.5", "--spectra", "no.safetensors"], "no.safetensors"),
        ([*PLAN, "--macs", "0.5", "--device", "nonsense"], "device 'nonsense'"),
        ([*PLAN, "--macs", "0.5", "--backend", "nonsense"], "got 'nonsense'"),
        ([*PLAN, "--macs", "0.5", "-o", "nowhere/plan.json"], "cannot write nowhere/plan.json: the folder"),
        (["plan", "no_module:x", "--macs", "0.5", "-o", "nowhere/p.json"], "cannot write nowhere/p.json"),
        (["prune", NET, "no.json"], "no.json"),
        (["plan", NET, "--input", "3x6x6", "--macs", "0.5"], "for its own are random (conv1.weight)"),
        (["slim", NET, "--input", "3x6x6", "--macs", "0.5"], "--random-weights takes them as they are"),
        (["calibrate", NET, "--input", "3x6x6", "--data", f"{NETS}:data"], "expected --weights"),
        (["eval", NET, "--data", f"{NETS}:data"], "expected --weights"),
        ([*PLAN, "--macs", "0.5", "-o", "plan.yaml"], "expected a name ending in .json, got .yaml"),
        ([*PLAN, "--macs", "0.5", "--plot", "p.docx"], "expected a suffix of"),
        (["prune", NET, "no.json", "-o", "t.onnx"], "expected a name ending in .safetensors, got .onnx"),
        (["export", "no.safetensors", NET, "-o", "t.tflite"], "expected a name ending in .onnx or .pt2"),
        (["export", "no.safetensors", NET], "cannot read no.safetensors: no such file"),
        (["plan", f"{NET}?width", "--macs", "0.5"], "expected NAME?key=value&key=value, got 'width'"),
        (["plan", f"{NET}?depth=3", "--macs", "0.5"], "unexpected keyword argument 'depth'"),
        (["prune", NET, "no.json", "--select", "best"], "'best' is not one of"),
        (
            ["slim", NET, *RANDOM, "--input", "3x6x6", "-o", f"{NETS}.py/out"],
            f"cannot make the folder {NETS}",
        ),
        (
            ["prune", NET, "no.json", "--export", "t.onx"],
            "expected a file ending in .onnx or .pt2, got t.onx",
        ),
        (["spectra", "no.pth"], "no.pth: no such file"),
        (["spectra", "w.pth", "--input", "3x6x6"], "w.pth: a file of weights stands alone, got --input"),
        (["bench", "--repeats", "0"], "at least one repeat, got 0"),
    ],
)
def test_bad_arguments_get_one_line(arguments, message, capsys):
    assert message in error_of(arguments, capsys)


def test_a_budget_that_cannot_be_reached_names_the_nearest(capsys):
    assert "0.0001" in error_of([*PLAN, "--macs", "0.0001"], capsys)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("conv2.weight", float("nan"), "conv2"),
        ("conv2.weight", float("inf"), "conv2"),
    ],
)
def test_a_weight_that_is_not_finite_names_its_layer(tensor, value, message, capsys):
    state = build_model(NET).state_dict()
    state[tensor][3, 2, 1, 1] = value
    save_file(state, "bad.safetensors")
    for command in ([*PLAN, "--macs", "0.5", "--weights", "bad.safetensors"], ["spectra", "bad.safetensors"]):
        line = error_of(command, capsys)
        assert message in line
        assert str(value) in line


def test_a_layer_of_zeros_is_planned(capsys):
    state = build_model(NET).state_dict()
    state["conv2.weight"].zero_()
    save_file(state, "zero.safetensors")
    assert main([*PLAN, "--explained-variance", "0.9", "--weights", "zero.safetensors", "--json"]) == 0
    assert 1 in Plan.from_json(capsys.readouterr().out).widths().values()


def test_an_empty_layer_names_itself(capsys):
    save_file({"empty.weight": torch.zeros(0, 3)}, "empty.safetensors")
    assert "empty.weight" in error_of(["spectra", "empty.safetensors"], capsys)


def test_weights_of_another_shape_or_cut_short(weights, capsys):
    wide = ["plan", f"{NETS}:wide", "--input", "3x6x6", "--macs", "0.5", "--weights", weights]
    assert "conv1.weight: expected shape (12, 3, 3, 3), got (8, 3, 3, 3)" in error_of(wide, capsys)
    whole = Path(weights).read_bytes()
    Path("short.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(load_file(weights), "whole.pth")
    Path("short.pth").write_bytes(Path("whole.pth").read_bytes()[:1000])
    for name in ("short.safetensors", "short.pth"):
        assert name in error_of([*PLAN, "--macs", "0.5", "--weights", name], capsys)


def test_a_plan_of_another_model(plan, capsys):
    line = error_of(["prune", f"{NETS}:wide", plan, "--random-weights"], capsys)
    assert "(8, 3, 3, 3)" in line
    assert "(12, 3, 3, 3)" in line
    Path("edited.json").write_text(re.sub(r'"schema": \d+', '"schema": 99', Path(plan).read_text()))
    assert "schema" in error_of(["prune", NET, "edited.json"], capsys)


@needs_accelerate
def test_data_that_does_not_fit(thin, weights, capsys):
    arguments = ["distill", NET, thin, "--weights", weights, "-o", "d.safetensors", "--data"]
    assert "(8, 1, 6, 6)" in error_of([*arguments, f"{NETS}:wrong_data"], capsys)
    assert "no batches" in error_of([*arguments, f"{NETS}:no_data"], capsys)
    assert "expected package.module:function" in error_of([*arguments, "loader"], capsys)
    assert "no_folder" in error_of([*arguments, f"{NETS}:data", "--resume", "no_folder"], capsys)


def test_a_disk_that_fills_up_leaves_what_was_there(weights, plan, capsys):
    resource = pytest.importorskip("resource")
    Path("thin.safetensors").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        line = error_of(["prune", NET, plan, "--weights", weights, "-o", "thin.safetensors"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write thin.safetensors" in line
    assert Path("thin.safetensors").read_text() == "old"


@pytest.mark.parametrize("kind", [KeyError, ValueError, TypeError])
def test_an_error_inside_has_a_status_of_its_own_and_a_traceback_on_demand(kind, monkeypatch, capsys):
    """ValueError and TypeError too, which are bad input only where an argument was checked."""

    def fail() -> None:
        raise kind("lost")

    monkeypatch.setattr("slimfast.cli.machine.diagnose", fail)
    assert main(["doctor"]) == 1
    shown = f"{kind.__name__}: {kind('lost')}"
    assert capsys.readouterr().err == f"slimfast: internal error, {shown} (--debug shows where)\n"
    assert main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError])
def test_an_argument_that_is_refused_inside_is_bad_input(kind, monkeypatch, capsys):
    def refuse() -> None:
        raise kind("expected another one")

    monkeypatch.setattr("slimfast.cli.machine.diagnose", refuse)
    assert error_of(["doctor"], capsys) == "slimfast: expected another one\n"


def test_ctrl_c_outside_of_a_training(monkeypatch, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimfast.cli.machine.diagnose", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "slimfast: interrupted\n"
