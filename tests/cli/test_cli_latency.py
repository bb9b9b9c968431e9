"""``slimfast latency`` and ``--latency``: a table is written, and a plan keeps to it."""

from __future__ import annotations

import json

import pytest

from slimfast.cli import main
from slimfast.latency import LatencyTable
from slimfast.plans import Plan

# The machine that runs the tests may be busy.
pytestmark = pytest.mark.filterwarnings("default:latency. the samples spread")

FACTORY = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "small_net_for_latency.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NET = ["small_net_for_latency:build", "--input", "8"]
RANDOM = "--random-weights"


def test_a_table_is_written_and_a_plan_keeps_to_it(folder, capsys):
    assert main(["latency", *NET, "--threads", "1", "--seconds", "0.01", "-o", "table.json"]) == 0
    said = capsys.readouterr()
    assert "torch, 1 thread, batch 1" in said.out
    table = LatencyTable.of("table.json")
    assert table.threads == 1
    assert (
        main(["plan", *NET, RANDOM, "--latency", "90%", "--latency-table", "table.json", "-o", "plan.json"])
        == 0
    )
    said = capsys.readouterr()
    assert "latency: asked for 0.9" in said.out
    plan = Plan.load("plan.json")
    assert plan.budget == {"latency": 0.9}
    assert plan.latency is not None
    assert plan.latency.measured is not None


def test_the_latency_is_told_as_json(folder, capsys):
    assert main(["latency", *NET, "--threads", "1", "--seconds", "0.01", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["threads"] == 1
    assert told["runtime"] == "torch"
    assert told["p20"] <= told["seconds"] <= told["p80"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--latency", "12"], "expected latency in (0, 1]"),
        (["--latency", "0ms"], "expected latency in (0, 1]"),
        (["--latency", "0.5", "--latency-table", "none.json"], "none.json"),
        (["--latency", "0.5", "--uniform"], "--uniform"),
        (["--latency", "0.5", "--from-masks"], "--from-masks"),
        (["--latency", "0.5", "--stream"], "expected --latency-table"),
    ],
)
def test_what_cannot_be_meant_is_one_line(folder, capsys, arguments, said):
    assert main(["plan", *NET, RANDOM, *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_another_networks_table_is_one_line(folder, capsys):
    assert main(["latency", *NET, "--threads", "1", "--seconds", "0.01", "-o", "table.json"]) == 0
    capsys.readouterr()
    other = [*NET]
    other[2] = "2x8:float32"
    assert main(["plan", *other, RANDOM, "--latency", "0.5", "--latency-table", "table.json"]) == 2
    told = capsys.readouterr().err
    assert "expected the table of this network" in told
    assert told.count("\n") == 1
