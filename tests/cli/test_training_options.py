"""What the command line asks of a training beside its rates: adapters, memory, a teacher kept in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.cli_cases import NET, NETS, needs_accelerate
from support.small_decoder import small_llama

from slimfast.cli import main
from slimfast.storage.weights import read_tensors

pytestmark = pytest.mark.usefixtures("workshop")


@pytest.fixture
def llama() -> list[str]:
    """Arguments that name a small language model, its weights and its texts."""
    datasets = pytest.importorskip("datasets")
    small_llama().save_pretrained("llama")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 32, (12, 8), generator=generator).tolist()
    datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}).save_to_disk("texts")
    told = ["slim", "hf:llama", "--weights", "llama/model.safetensors", "--input", "2x8:int64:32"]
    told += ["--params", "0.9", "--include", "channel", "--data", "texts", "--batch-size", "4"]
    return [*told, "--epochs", "2", "--lr", "0.01", "--optimizer", "adamw", "--temperature", "1"]


@needs_accelerate
@pytest.mark.filterwarnings("ignore:.*by the weights alone")
def test_adapters_checkpoints_and_a_kept_teacher(
    llama: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    kept = ["--teacher-cache", "teacher.bin", "--teacher-top", "30"]
    more = ["--lora", "2", "--lora-target", "up_proj", "--gradient-checkpointing", *kept]
    assert main([*llama, *more, "-o", "one"]) == 0
    assert "not calibrated" not in capsys.readouterr().err
    size = Path("teacher.bin").stat().st_size
    assert main([*llama, *more, "-o", "two"]) == 0
    # Nothing was computed again, and it is the same training.
    assert Path("teacher.bin").stat().st_size == size
    thin, one, two = (
        read_tensors(f"{name}.safetensors") for name in ("one/thin", "one/distilled", "two/distilled")
    )
    assert thin.keys() == one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    changed = {name for name in thin if not torch.equal(thin[name], one[name])}
    assert changed == {name for name in thin if "up_proj" in name}
    capsys.readouterr()


@needs_accelerate
def test_a_kept_teacher_of_images(weights: str, thin: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["distill", NET, thin, "--weights", weights, "--data", f"{NETS}:data", "--epochs", "1"]
    assert main([*told, "-o", "plain.safetensors"]) == 0
    assert main([*told, "--teacher-cache", "teacher.bin", "-o", "kept.safetensors"]) == 0
    assert Path("teacher.bin").stat().st_size > 0
    plain, kept = read_tensors("plain.safetensors"), read_tensors("kept.safetensors")
    for name, tensor in plain.items():
        torch.testing.assert_close(kept[name], tensor)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora-target", "up_proj"], "--lora-target: expected --lora RANK beside it"),
        (["--teacher-top", "4"], "--teacher-top: expected --teacher-cache FILE beside it"),
    ],
)
def test_options_that_want_another_are_refused_before_any_work(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slim", "no.such:Net", "--macs", "0.5", *more]) == 2
    assert said in capsys.readouterr().err


def test_adapters_without_their_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["slim", "no.such:Net", "--macs", "0.5", "--lora", "4"]) == 2
    assert "--lora: needs peft: install the extra 'slimfast[lora]'" in capsys.readouterr().err
