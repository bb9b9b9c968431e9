"""``slimfast latency`` and ``--latency``: a table is written, and a plan keeps to it."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from support.synthetic_device import Device

import slimfast
from slimfast.cli import main
from slimfast.latency import LatencyTable, latency_table
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
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


NET = ["small_net_for_latency:build", "--input", "8"]
RANDOM = "--random-weights"


def test_a_table_is_written(folder, capsys):
    assert main(["latency", *NET, "--threads", "1", "--seconds", "0.01", "-o", "table.json"]) == 0
    assert "torch, 1 thread, batch 1" in capsys.readouterr().out
    table = LatencyTable.of("table.json")
    assert (table.threads, table.batch, table.runtime) == (1, 1, "torch")


def test_a_plan_keeps_to_a_table(folder, capsys):
    model = importlib.import_module("small_net_for_latency").build()
    example = torch.zeros(1, 8, device="cpu")
    latency_table(slimfast.trace_channels(model, example), model, example, measure=Device()).save(
        "table.json"
    )
    assert (
        main(["plan", *NET, RANDOM, "--latency", "50%", "--latency-table", "table.json", "-o", "p.json"]) == 0
    )
    said = capsys.readouterr().out
    assert "latency: asked for 0.5" in said
    assert "not measured here" in said
    plan = Plan.load("p.json")
    assert plan.budget == {"latency": 0.5}
    assert plan.latency is not None
    assert 0 < plan.latency.predicted <= 0.5 * plan.latency.before


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
        (["--latency", "0.5", "--uniform"], "expected a transformers model"),
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
