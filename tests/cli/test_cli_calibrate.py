"""The command line's calibration, and what prune and slim do with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli_cases import NET, NETS, files, plan, thin, weights, workshop

from slimfast import load_calibration
from slimfast.cli import main

__all__ = ["plan", "thin", "weights", "workshop"]

CALIBRATE = ["calibrate", NET, "--data", f"{NETS}:data", "--input", "3x6x6"]


def test_calibrate_writes_what_was_read(weights: str, capsys: object) -> None:
    assert main([*CALIBRATE, "--weights", weights, "--samples", "20", "-o", "c.safetensors", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)  # type: ignore[attr-defined]
    assert shown == {"samples": 20, "readings": {"conv2.weight": 720, "fc.weight": 20}, "left": {}}
    assert load_calibration("c.safetensors").samples == 20
    assert main([*CALIBRATE, "--weights", weights]) == 0
    assert "32 samples, read by 2 layers" in capsys.readouterr().out  # type: ignore[attr-defined]
    assert Path("calibration.safetensors").exists()


def test_prune_repairs(plan: str, weights: str, capsys: object) -> None:
    assert main([*CALIBRATE, "--weights", weights, "-o", "c.safetensors"]) == 0
    common = ["prune", NET, plan, "--weights", weights]
    data = ["--calibration", "c.safetensors", "--select", "activations"]
    ways = {
        "cut": [],
        "weights": ["--repair", "weights"],
        "activations": ["--repair", "activations", *data],
        "damped": ["--repair", "activations", "--repair-damping", "1", *data],
    }
    for name, extra in ways.items():
        assert main([*common, *extra, "-o", f"{name}.safetensors"]) == 0
    contents = {Path(f"{name}.safetensors").read_bytes() for name in ways}
    assert len(contents) == len(ways)


def test_a_repair_without_its_calibration_is_one_line(plan: str, weights: str, capsys: object) -> None:
    assert main(["prune", NET, plan, "--weights", weights, "--repair", "activations"]) == 2
    shown = capsys.readouterr().err  # type: ignore[attr-defined]
    assert shown == "slimfast: repair: expected a calibration for kind 'activations', got none\n"
    assert "thin.safetensors" not in files()


def test_plan_spends_its_budget_by_the_calibration(weights: str, capsys: object) -> None:
    assert main([*CALIBRATE, "--weights", weights, "-o", "c.safetensors"]) == 0
    capsys.readouterr()  # type: ignore[attr-defined]
    command = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "--json"]
    assert main([*command, "--calibration", "c.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["allocation"] == "marginal_gain"  # type: ignore[attr-defined]


def test_a_calibrated_plan_is_drawn(weights: str) -> None:
    pytest.importorskip("matplotlib")
    assert main([*CALIBRATE, "--weights", weights, "-o", "c.safetensors"]) == 0
    command = ["plan", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5"]
    assert main([*command, "--calibration", "c.safetensors", "--plot", "p.png"]) == 0
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_slim_spends_its_budget_by_the_calibration(weights: str, capsys: object) -> None:
    assert main([*CALIBRATE, "--weights", weights, "-o", "c.safetensors"]) == 0
    capsys.readouterr()  # type: ignore[attr-defined]
    command = ["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "--json"]
    assert main([*command, "--calibration", "c.safetensors", "--repair", "activations"]) == 0
    found = json.loads(capsys.readouterr().out)  # type: ignore[attr-defined]
    assert found["allocation"] == "marginal_gain"
    assert files() >= {"slim", "c.safetensors"}
