"""`slimfast plan --uniform` and `--pretrained`: thin transformers for their stock class, on the command line;
and `--ema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.cli_cases import NET, NETS, files, needs_accelerate

from slimfast.cli import main
from slimfast.cli.models import build_model
from slimfast.huggingface.uniform import plan_uniform
from slimfast.plans import Plan
from slimfast.storage.weights import read_tensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERTS = "berts_of_a_test"
BERT = f"{BERTS}:bert"
SOURCE = """
import torch
from transformers import BertConfig, BertForSequenceClassification

def bert():
    return BertForSequenceClassification(BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16, num_labels=3,
    ))

def data():
    ids = torch.randint(0, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "labels": ids[:, 0] % 3}]
"""
PLAN = ["plan", BERT, "--input", "2x6:int64:40", "--uniform"]
RANDOM = [*PLAN, "--random-weights"]


@pytest.fixture
def bert(workshop: Path) -> str:
    (workshop / f"{BERTS}.py").write_text(SOURCE)
    save_file(build_model(BERT, seed=5).state_dict(), "bert.safetensors")
    return "bert.safetensors"


@needs_accelerate
def test_a_thin_transformer_becomes_a_folder_of_its_class(
    bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLAN, "--weights", bert, "--params", "0.7", "-o", "plan.json", "--json"]) == 0
    found = Plan.from_json(capsys.readouterr().out)
    expected = plan_uniform(build_model(BERT, weights=bert), found.inputs.example()[0], params=0.7)
    assert found == expected == Plan.load("plan.json")
    prune = ["prune", BERT, "plan.json", "--weights", bert]
    assert main([*prune, "-o", "thin.safetensors", "--pretrained", "hub"]) == 0
    assert "wrote hub\n" in capsys.readouterr().err
    stock = transformers.AutoModelForSequenceClassification.from_pretrained("hub")
    state, cut = stock.state_dict(), read_tensors("thin.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in cut.items())
    assert sum(p.numel() for p in stock.parameters()) == found.cost_after.params

    distill = ["distill", BERT, "thin.safetensors", "--weights", bert, "--data", f"{BERTS}:data"]
    distill += ["--epochs", "1", "-o", "d.safetensors"]
    assert main([*distill, "--pretrained", "trained", "--input", "2x6:int64:40"]) == 0
    state = transformers.AutoModelForSequenceClassification.from_pretrained("trained").state_dict()
    trained = read_tensors("d.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())
    assert any(not torch.equal(trained[name], tensor) for name, tensor in cut.items())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*PLAN], "expected a budget"),
        (
            [*PLAN, "--macs", "0.5", "--stream"],
            "--uniform: expected --macs, --params, --latency, --peak-memory or --multiple-of, got --stream",
        ),
        ([*PLAN, "--explained-variance", "0.5"], "got --explained-variance"),
        ([*PLAN, "--macs", "0.5", "--exclude", "x"], "got --exclude"),
        ([*PLAN, "--macs", "0.5", "--min-width", "2"], "got --min-width"),
        ([*PLAN, "--macs", "0.5", "--width", "x=2"], "got --width"),
        ([*RANDOM, "--macs", "0.0001"], "plan_uniform: "),
        (
            ["plan", NET, "--input", "3x6x6", "--uniform", "--macs", "0.5", "--random-weights"],
            "plan_uniform: expected a transformers model, got Net",
        ),
    ],
)
def test_what_cannot_be_planned(
    bert: str, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, reason, capsys)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (".", "cannot write .: it is there already, and not an empty folder"),
        ("plan.json", "cannot write plan.json: it is there already"),
        ("nowhere/hub", "cannot write nowhere/hub: the folder nowhere does not exist"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    plan: str,
    target: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(["prune", NET, plan, "--pretrained", target], reason, capsys)


def assert_refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert reason in printed.err
    assert printed.err.startswith("slimfast: ")
    assert printed.err.count("\n") == 1
    assert files() == before


@needs_accelerate
def test_the_average_of_the_weights_is_what_ema_gives(
    thin: str,
    weights: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    distill = [
        "distill",
        NET,
        thin,
        "--weights",
        weights,
        "--data",
        f"{NETS}:data",
        "--epochs",
        "2",
        "--json",
    ]
    slim = ["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "--data", f"{NETS}:data"]
    # By the weights alone, as the thin network was cut.
    slim += ["--epochs", "2", "--samples", "0"]
    found = []
    for decay in ([], ["--ema", "0.5"]):
        assert main([*distill, *decay, "-o", "d.safetensors"]) == 0
        assert json.loads(capsys.readouterr().out)["epochs"][-1]["epoch"] == 2
        assert main([*slim, *decay]) == 0
        trained = read_tensors("slim/distilled.safetensors")
        alone = read_tensors("d.safetensors")
        assert all(torch.equal(trained[name], alone[name]) for name in alone)
        found.append(alone)
        capsys.readouterr()
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert_refused(
        [*distill, "--ema", "1.5", "-o", "e.safetensors"], "ema must be in (0, 1) or None, got 1.5", capsys
    )
