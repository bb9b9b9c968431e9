"""The zoo's own machinery: limits, what is told of failures, resuming, and the tables made of it."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch
from support.zoo_rows import STAMP, row
from torch import nn

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import networks, stages, tables
from benchmarks.zoo.processes import Limits, run_limited
from slimfast.graph import trace_channels
from slimfast.graph.recording.inputs import tensors_in

LIMITS = Limits(60.0, 8_000_000_000, 1)


def two_stages(tell):
    found = stages.Stages(tell)
    with found.stage("first") as facts:
        facts["seen"] = 3
    with found.stage("second"):
        raise ValueError("no such thing\nin two lines")
    with found.stage("third", needed=True):
        raise KeyError("gone")


def endless(tell):
    with stages.Stages(tell).stage("loop"):
        time.sleep(100)


def hungry(tell):
    with stages.Stages(tell).stage("fill"):
        bytearray(3_000_000_000)


def dying(tell):
    with stages.Stages(tell).stage("die"):
        raise SystemExit(3)


def careless(tell):
    with stages.Stages(tell).stage("first"):
        pass
    raise ValueError("outside of every stage")


def test_stages_are_told_as_they_end():
    told = run_limited(two_stages, (), LIMITS)
    assert told["first"].keys() == {"seconds", "seen"}
    assert told["second"] == {"failed": "ValueError: no such thing"}
    assert told["third"] == {"failed": "KeyError: 'gone'"}


@pytest.mark.parametrize(
    ("function", "limits", "stage", "reason"),
    [
        (endless, Limits(2.0, 8_000_000_000, 1), "loop", "not finished in 2 s"),
        (hungry, Limits(60.0, 2_500_000_000, 1), "fill", "MemoryError"),
        (dying, LIMITS, "die", "the process ended with status 3"),
    ],
)
def test_a_process_that_takes_too_much_is_blamed_on_its_stage(function, limits, stage, reason):
    assert run_limited(function, (), limits) == {stage: {"failed": reason}}


def test_what_ends_a_process_between_its_stages_is_told_too():
    told = run_limited(careless, (), LIMITS)
    assert told.pop("first").keys() == {"seconds"}
    assert told == {"between the stages": {"failed": "the process ended with status 1"}}


def test_selections_have_the_networks_they_are_about():
    sizes = {"families": 45, "transformers": 16, "torchvision": 33, "detectors": 14, "segmentation": 21}
    sizes |= {"diffusion": 12, "audio": 9, "graphs": 7, "language": 34}
    assert {zoo: len(names) for zoo, names in networks.ZOOS.items() if zoo != "timm"} == sizes
    names = [name for zoo in networks.ZOOS.values() for name in set(zoo)]
    assert all(re.fullmatch(r"[a-z_]+:[\w.-]+", name) for name in names)


@pytest.mark.parametrize("name", networks.ZOOS["language"])
def test_networks_from_small_configurations_run(name):
    model, example = networks.build(name)
    with torch.no_grad():
        outputs = list(tensors_in(model(**example)))
    assert outputs
    assert all(bool(output.isfinite().all()) for output in outputs if output.is_floating_point())


def test_one_model_of_each_file_of_timm():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    files = set(timm.list_modules())
    for module, name in networks.SMALLEST.items():
        # Another version of timm may have other files.
        if module in files:
            assert name in timm.list_models(module=module)
    assert len(networks.SMALLEST) >= 98


def test_prunable_is_what_a_single_unit_of_each_group_leaves():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))
    # One hidden unit leaves a column of 3, its bias, a row of 5 and the output's 5 biases.
    assert stages.prunable(trace_channels(model, torch.zeros(1, 3))) == pytest.approx(1 - 14 / 77)


def test_what_stays_whole_is_told_by_its_share():
    class Spectral(nn.Module):
        """A layer of 8 x 8 whose result nobody can follow, behind one of 8 x 3."""

        def __init__(self):
            super().__init__()
            self.stem, self.mixed, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.fft.fft(self.mixed(self.stem(x).relu())).abs())

    graph = trace_channels(Spectral(), torch.zeros(4, 3))
    told = stages.whole(graph)
    (fft,) = [reason for reason in told if "fft" in reason]
    # of 122 parameters: the 8 biases of the mixed layer, and the head's 16 weights with their 2 biases
    assert told == {fft: pytest.approx((8 + 16 + 2) / 122, abs=1e-4)}


def test_the_peers_classifier():
    assert networks.classifier(nn.Sequential(nn.Linear(2, 2))) == []
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    assert networks.classifier(model) == [model.classifier[2]]


def test_a_second_sample():
    example = {"x": torch.zeros(1, 3), "mask": torch.ones(1, 2, dtype=torch.int64), "n": 4}
    twice = networks.two_samples(example)
    assert twice["x"].shape == (2, 3)
    assert torch.equal(twice["mask"], torch.ones(2, 2, dtype=torch.int64))
    assert twice["n"] == 4
    assert bool(twice["x"][1].any())


def test_what_has_a_row_is_not_run_again(tmp_path, monkeypatch, capsys):
    ran = []

    def measure(name, limits, onnx, peer, known):
        ran.append((name, known))
        return {"stages": {"reload": {"seconds": 1.0}}, "stamp": STAMP}

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "start_server", lambda: None)
    arguments = ["--only", "resnet*", "--no-peer", "--results", str(tmp_path / "zoo.json")]
    assert command.main(arguments) == 0
    assert ran == [("timm:resnet18", None)]
    assert command.main(["--only", "swin*", "dla3?", "--list", *arguments[2:]]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["timm:swin_tiny_patch4_window7_224", "timm:dla34"]
    assert command.main(arguments) == 0
    assert len(ran) == 1
    assert command.main([*arguments, "--onnx"]) == 0
    assert ran[1:] == [("timm:resnet18", {"stages": {"reload": {"seconds": 1.0}}, "stamp": STAMP})]
    assert command.main([*arguments, "--again"]) == 0
    assert ran[2:] == [("timm:resnet18", None)]
    assert json.loads((tmp_path / "zoo.json").read_text()).keys() == {"timm:resnet18"}
    assert "all well, 1.0 s" in capsys.readouterr().out


def test_an_export_alone_is_added_to_a_row_that_was_reloaded(monkeypatch):
    calls = []

    def run(function, arguments, limits):
        calls.append((function, arguments[0]))
        return {"onnx": {"failed": "not finished in 60 s"}}

    monkeypatch.setattr(command, "run_limited", run)
    known = row()
    known["stages"].pop("onnx", None)
    found = command.measure("timm:resnet18", LIMITS, True, True, known)
    assert calls == [(stages.onnx, "timm:resnet18")]
    exported = {"failed": "not finished in 60 s", "apart": True}
    assert found == known | {"stages": known["stages"] | {"onnx": exported}}
    assert "- resnet18, onnx: `not finished in 60 s`" in tables.table("families", {"timm:resnet18": found})
    known["stages"]["reload"] = {"failed": "off"}
    assert command.measure("timm:resnet18", LIMITS, True, True, known) == known


def test_the_peer_alone_is_added_to_a_row_that_lacks_it(monkeypatch):
    calls = []

    def run(function, arguments, limits):
        calls.append((function, arguments))
        return {"prune": {"seconds": 9.0, "reached": 0.4}}

    monkeypatch.setattr(command, "run_limited", run)
    known = row()
    del known["peer"]
    found = command.measure("timm:resnet18", LIMITS, False, True, known)
    assert calls == [(stages.peer, ("timm:resnet18",))]
    assert found["stages"] == known["stages"]
    text = tables.table("families", {"timm:resnet18": found})
    assert "| 0.40 of it | 9.00 (another time) |" in text
    assert "slimfast was the faster" not in text


def test_a_row_that_is_run_again_keeps_what_was_not_asked_for():
    before = row(onnx={"seconds": 9.0})
    again = row(onnx={"failed": "not finished in 60 s"})
    assert command.carried(again, before) == again
    again = row(prune={"seconds": 1.25})
    del again["peer"]
    found = command.carried(again, before)
    assert found["stages"]["prune"] == {"seconds": 1.25}
    line = tables.table("families", {"timm:resnet18": found}).splitlines()[2]
    assert line.endswith("| yes (another time) | 2.75 | 0.30 of it | 4.00 (another time) |")
    again["stages"]["reload"] = {"failed": "off"}
    assert "onnx" not in command.carried(again, before)["stages"]
    assert command.carried(again, {}) == again
