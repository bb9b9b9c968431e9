"""Low-rank adapters of peft: trained beside the student's weights, merged into them, gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_decoders import llama, padded, texts
from torch import Tensor, nn

import slimfast
from slimfast.distillation import DistillationLoss, History, distill
from slimfast.distillation.adapters import adapted

peft = pytest.importorskip("peft")


def config(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], **options})


def thin_llama() -> tuple[nn.Module, nn.Module]:
    model = llama()
    tokens = padded(texts(12, 12), 12)
    return model, slimfast.slim(model, {"input_ids": tokens["input_ids"]}, params=0.7, include=["channel"])


def batches() -> list[dict[str, Tensor]]:
    found = [padded(texts(9, 12, 7, seed=i), 12) for i in range(3)]
    return [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in found]


def trained(student: nn.Module, teacher: nn.Module, **options: Any) -> History:
    settings: dict[str, Any] = {"epochs": 3, "lr": 0.02, "optimizer": "adamw", "progress": False}
    loss = DistillationLoss(temperature=1.0)
    return distill(student, teacher=teacher, train=batches(), loss=loss, **settings | options)


def test_merged_weights_give_what_the_adapters_gave() -> None:
    _, student = thin_llama()
    tokens = padded(texts(9, 12), 12)
    modules = {name: type(module) for name, module in student.named_modules()}
    before = copy.deepcopy(student.state_dict())
    with adapted(student, config()) as merge:
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.requires_grad:
                    assert "lora_" in name
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
        beside = student(**tokens).logits
        merge()
    assert torch.allclose(student(**tokens).logits, beside, atol=1e-4)
    assert {name: type(module) for name, module in student.named_modules()} == modules
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"model.layers.{i}.{name}.weight" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_training_lowers_the_loss_and_changes_low_rank_parts_alone(tmp_path: Path) -> None:
    teacher, student = thin_llama()
    before = copy.deepcopy(student.state_dict())
    attributes = set(vars(student))
    history = trained(student, teacher, adapter=config(), epochs=6)
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert set(vars(student)) == attributes
    for name, tensor in student.state_dict().items():
        moved = tensor - before[name]
        rank = int(torch.linalg.matrix_rank(moved, rtol=1e-4)) if moved.dim() == 2 else int(moved.any())
        assert rank == (2 if name.endswith(("q_proj.weight", "down_proj.weight")) else 0), name
    # It is a thin network like any other.
    slimfast.save(student, tmp_path / "thin.safetensors")
    again = slimfast.load(tmp_path / "thin.safetensors", llama())
    tokens = padded(texts(9, 12), 12)
    assert torch.equal(again(**tokens).logits, student(**tokens).logits)


def test_the_best_epoch_is_what_is_merged() -> None:
    teacher, student = thin_llama()
    seen: list[float] = []

    def score(network: nn.Module) -> float:
        seen.append(-slimfast.perplexity(network, batches()))
        return seen[-1] if len(seen) != 3 else seen[-1] - 100.0

    history = trained(student, teacher, adapter=config(), evaluate=score)
    assert history.best is not None
    assert -slimfast.perplexity(student, batches()) == pytest.approx(history.best.score, rel=1e-5)


def test_gradient_checkpointing_and_a_resumed_run_end_alike(tmp_path: Path) -> None:
    ends = []
    for options in ({}, {"gradient_checkpointing": True}, {"checkpoint": tmp_path / "run"}):
        teacher, student = thin_llama()
        whole = copy.deepcopy(student)
        if "checkpoint" in options:

            def stop(done: int, of: int) -> None:
                if done == 4:
                    raise slimfast.Cancelled("enough")

            with pytest.raises(slimfast.Cancelled):
                trained(student, teacher, adapter=config(), progress=stop, **options)
            # What was stopped is as it was before, but for what the folder has.
            assert all(
                torch.equal(a, b) for a, b in zip(student.parameters(), whole.parameters(), strict=True)
            )
            with pytest.raises(slimfast.SlimfastError, match=r"other settings: adapter r 2, .* there, r 3"):
                trained(student, teacher, adapter=config(r=3), resume=True, **options)
            options = {**options, "resume": True}
        torch.manual_seed(0)
        trained(student, teacher, adapter=config(init_lora_weights=True), **options)
        ends.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.allclose(ends[0], ends[1], atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"r": 4}, r"configuration of peft, as LoraConfig\(target_modules=\[...\]\), got dict"),
        (peft.IA3Config(), "must be a LoraConfig of peft, got IA3Config"),
        (config(target_modules=["colour"]), "peft cannot put it into LlamaForCausalLM: .*colour"),
    ],
)
def test_what_is_no_adapter_is_refused_in_one_line(adapter: Any, message: str) -> None:
    teacher, student = thin_llama()
    with pytest.raises(TypeError, match=message) as found:
        trained(student, teacher, adapter=adapter)
    assert "\n" not in str(found.value)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_tied_weights_are_refused() -> None:
    student = llama()
    student.lm_head.weight = student.model.embed_tokens.weight
    with pytest.raises(
        TypeError, match=r"lm_head has its weight from model.embed_tokens.weight, which would"
    ):
        trained(student, llama(1), adapter=config(target_modules=["lm_head"]))
    assert type(student.lm_head) is nn.Linear
