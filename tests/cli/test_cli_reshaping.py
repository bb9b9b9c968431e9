"""``slim --depth`` and ``--rotate-heads``: the networks are those of the Python calls, and files load."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli_cases import needs, needs_accelerate

import slimfast
from slimfast.cli import main
from slimfast.cli.models import build_model

DEEP = "deep_nets_of_a_test"
NET = f"{DEEP}:net"
INPUT = ["--input", "5x8"]
SOURCE = """
import torch
from torch import nn
from support.head_networks import Attention, moved

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean(1))

def net():
    # the first block does next to nothing
    model = moved(Net()).eval()
    with torch.no_grad():
        for layer in (model.blocks[0].attention.o, model.blocks[0].mlp[2]):
            layer.weight.mul_(1e-3)
            layer.bias.mul_(1e-3)
    return model

plain = lambda: moved(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)))

def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 5, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]

data = lambda: (batches(), batches(1))
"""
DEPTH = [*INPUT, "--calibration", "c.safetensors", "--select", "activations", "--repair", "activations"]


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A folder with a module of the user's own, and a calibration of its network."""
    (tmp_path / f"{DEEP}.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["calibrate", NET, *INPUT, "--data", f"{DEEP}:data", "-o", "c.safetensors"]) == 0
    capsys.readouterr()
    yield tmp_path
    sys.modules.pop(DEEP, None)


pytestmark = pytest.mark.usefixtures("folder")


def example() -> torch.Tensor:
    return torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))


def params(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def thin_of(path: str = "slim/thin.safetensors") -> torch.nn.Module:
    """What a fresh network becomes by a file."""
    return slimfast.load(path, build_model(NET))


def assert_alike(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_depth_is_that_of_python_and_says_which_layers_went(capsys):
    assert main(["slim", NET, *DEPTH, "--depth", "1", "--params", "0.5", "--include", "channel"]) == 0
    printed = capsys.readouterr()
    wide, thin = build_model(NET), thin_of()
    expected = slimfast.slim(
        wide, example(), params=0.5, include=["channel"], depth=1, select="activations",
        repair="activations", calibration=slimfast.load_calibration("c.safetensors"),
    )  # fmt: skip
    assert_alike(thin, expected)
    assert len(thin.blocks) == 2
    assert params(thin) <= 0.5 * params(wide)
    assert [one.name for one in slimfast.manifest(thin).dropped] == ["blocks.0"]
    assert printed.out.startswith("dropped 1\n  blocks.0: influence ")
    assert f"params: {params(wide):,} -> {params(thin):,} (" in printed.out
    assert "plan.json is of the network without the layers that went" in printed.err
    # the plan is one of what is left, and not taken for one of the original
    assert slimfast.Plan.load("slim/plan.json").widths().keys() == slimfast.manifest(thin).widths.keys()
    for command in (["prune", NET, "slim/plan.json"], ["explain", "slim/plan.json", NET]):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert "blocks.2" in printed.err
        assert printed.out == ""


def test_of_several_depths_one_is_taken_and_its_own_plan_written(capsys):
    depths = ["--depth", "0", "--depth", "2", "--depth", "1"]
    arguments = ["slim", NET, *DEPTH, *depths, "--macs", "0.8", "--json"]
    assert main([*arguments, "--include", "channel"]) == 0
    printed = capsys.readouterr()
    thin = thin_of()
    assert len(thin.blocks) == 2, "the block that adds nothing goes, and no other"
    plan = slimfast.Plan.from_json(printed.out)
    assert plan.cost_after.params == params(thin)
    assert printed.out == Path("slim/plan.json").read_text()
    assert "  blocks.0: influence" in printed.err
    assert "of 0, 1 or 2 layers fewer, 1 is nearest to the original\n" in printed.err


def test_a_depth_of_none_is_the_usual_road(capsys):
    for more in ([], ["--depth", "0"]):
        assert main(["slim", NET, *INPUT, "--macs", "0.7", "--include", "channel", *more]) == 0
        printed = capsys.readouterr()
        assert "dropped" not in printed.out
        assert "plan.json is of" not in printed.err
        assert len(thin_of().blocks) == 3


@pytest.mark.parametrize("calibrated", [False, True])
def test_heads_are_rotated_as_in_python(calibrated, capsys):
    how = ["--calibration", "c.safetensors", "--select", "activations", "--repair", "activations"]
    command = ["slim", NET, *INPUT, "--rotate-heads", "--params", "0.9", "--include", "head_dim"]
    assert main(command + how if calibrated else command) == 0
    printed = capsys.readouterr()
    read = slimfast.load_calibration("c.safetensors") if calibrated else None
    rotated = slimfast.rotate_heads(build_model(NET), example(), calibration=read)
    again = None
    if read is not None:
        graph = slimfast.trace_channels(rotated, example())
        again = slimfast.calibrate(rotated, graph, [batch[0] for batch in read.batches])
    plan = slimfast.plan(rotated, example(), params=0.9, include=["head_dim"], calibration=again)
    how_then = {"select": "activations", "repair": "activations"} if calibrated else {}
    expected = slimfast.prune_channels(rotated, plan, calibration=again, **how_then)
    assert_alike(thin_of(), expected)
    changes = slimfast.manifest(thin_of()).moved
    assert changes["blocks.1.attention.v.weight"][0] == "rotation"
    assert changes == slimfast.manifest(expected).moved
    assert printed.out.startswith(f"{slimfast.rotation_report(rotated)}\n\n")
    assert "plan.json is of the network with rotated heads" in printed.err
    # what it was made of is told where the plan meets the original
    assert main(["prune", NET, "slim/plan.json", "--strict"]) == 2
    assert "made from other weights" in capsys.readouterr().err


def test_a_rotation_of_no_use_is_told(capsys):
    assert main(["slim", NET, *INPUT, "--rotate-heads", "--params", "0.9", "--include", "channel"]) == 0
    assert "no group of rotated head dims is cut" in capsys.readouterr().err


@needs_accelerate
@needs("plotly")
def test_layers_and_heads_together_are_distilled_scored_and_explained(capsys):
    command = ["slim", NET, *DEPTH, "--depth", "1", "--rotate-heads", "--params", "0.5"]
    command += ["--data", f"{DEEP}:data", "--epochs", "1", "--report", "slim/more/r.html"]
    assert main([*command, "--export", "slim/x.pt2"]) == 0
    assert "blocks.1" in Path("slim/more/r.html").read_text()
    printed = capsys.readouterr()
    assert "dropped 1\n" in printed.out
    assert "\nrotated " in printed.out
    thin = thin_of("slim/distilled.safetensors")
    x = example()
    torch.testing.assert_close(torch.export.load("slim/x.pt2").module()(x), thin(x))
    assert main(["eval", NET, "--weights", "slim/distilled.safetensors", "--data", f"{DEEP}:data"]) == 0
    assert capsys.readouterr().out.startswith("score ")
    assert main(["explain", "slim/distilled.safetensors"]) == 0
    told = capsys.readouterr().out.splitlines()
    kept = slimfast.manifest(thin)
    assert "  blocks.0" in told
    for name, (wide, width) in kept.widths.items():
        assert (f"  {name}: {wide} -> {width}" in told) == (width < wide)
    turned = sum("rotation" in changes for changes in kept.moved.values())
    assert any(
        line.startswith(f"{turned} have other values than the original by a rotation") for line in told
    )


def test_a_thin_file_is_a_report_of_its_own_and_other_files_are_none(capsys):
    save_file({"a": torch.ones(2)}, "other.safetensors")
    for command, message in (
        (["explain", "other.safetensors"], "expected a network saved by slimfast, got other tensors"),
        (["explain", "other.safetensors", NET], "expected a plan before MODEL, got other.safetensors"),
        (["explain", "no.safetensors"], "no.safetensors: no such file"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_tensors_keep_the_dtypes_of_the_checkpoint_under_their_new_names():
    state = build_model(NET).state_dict()
    half = {n: t.bfloat16() if n.startswith("blocks.2.") else t for n, t in state.items()}
    save_file(half, "half.safetensors")
    command = ["slim", NET, "--weights", "half.safetensors", *DEPTH, "--depth", "1", "--params", "0.6"]
    assert main([*command, "--include", "channel"]) == 0
    stored = load_file("slim/thin.safetensors")
    assert {n for n, t in stored.items() if t.dtype == torch.bfloat16} == {
        n for n in stored if n.startswith("blocks.1.")
    }


SLIM = ["slim", NET, *INPUT]
READ = ["--calibration", "c.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SLIM, "--macs", "0.5", "--depth", "1"], "--depth: expected --data, or --calibration"),
        ([*SLIM, *READ, "--explained-variance", "0.9", "--depth", "1"], "got --explained-variance"),
        ([*SLIM, *READ, "--macs", "0.5", "--latency", "0.5", "--depth", "1"], "alone, got --latency"),
        ([*SLIM, *READ, "--macs", "0.5", "--peak-memory", "0.5", "--depth", "1"], "got --peak-memory"),
        ([*SLIM, *READ, "--width", "*mlp*=0.5", "--depth", "1"], "budget of --macs or --params, got none"),
        ([*SLIM, *READ, "--macs", "0.5", "--depth", "3"], "one layer of each list stays"),
        ([*SLIM, *READ, "--macs", "0.5", "--depth", "-1"], "Invalid value for '--depth'"),
        ([*SLIM, *READ, "--macs", "0.5", "--depth", "some"], "Invalid value for '--depth'"),
        ([*SLIM, "--macs", "0.5", "--dept", "1"], "--depth"),
        ([*SLIM, "--macs", "0.5", "--rotate-head"], "--rotate-heads"),
        (
            [*SLIM, "--macs", "0.5", "--rounds", "2", "--depth", "1", *READ],
            "--rounds: every round cuts widths alone, got --depth",
        ),
        ([*SLIM, "--macs", "0.5", "--rounds", "2", "--rotate-heads"], "alone, got --rotate-heads"),
        (
            ["slim", f"{DEEP}:plain", "--input", "8", "--macs", "0.5", "--rotate-heads"],
            "rotate_heads: expected groups of head dims that can be rotated, got none of 0",
        ),
    ],
)
def test_what_cannot_be_meant_gets_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not Path("slim/thin.safetensors").exists()
