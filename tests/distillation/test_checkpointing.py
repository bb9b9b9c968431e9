"""Gradient checkpointing of a student: the same training, with less kept between forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_decoders import VOCABULARY, llama, padded, texts
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import slimfast
from slimfast.distillation import DistillationLoss, Hint, distill
from slimfast.distillation.checkpointing import checkpointed


def gpt() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    # With dropout, which has to be the same when a block is run again.
    return GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=16, n_layer=3, n_head=2, **small)).eval()


def batch() -> dict[str, Tensor]:
    found = padded(texts(12, 20, 7), 20)
    return {**found, "labels": found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)}


def gradients(student: nn.Module, teacher: nn.Module, loss: DistillationLoss, wanted: bool) -> list[Tensor]:
    """What one step of plain gradient descent did to each weight."""
    before = [p.detach().clone() for p in student.parameters()]
    distill(
        student,
        teacher=teacher,
        train=[batch()],
        epochs=1,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        warmup=0.0,
        max_grad_norm=None,
        loss=loss,
        gradient_checkpointing=wanted,
        progress=False,
    )
    return [a - b.detach() for a, b in zip(before, student.parameters(), strict=True)]


@pytest.mark.parametrize("make", [llama, gpt])
@pytest.mark.parametrize("hints", [False, True])
def test_gradients_are_the_same(make: Any, hints: bool) -> None:
    teacher = make()
    block = "model.layers.1.mlp" if make is llama else "transformer.h.1.mlp"
    loss = DistillationLoss(temperature=2.0, hints=(Hint(block, dim=-1),) if hints else ())
    students = [make(), make()]
    for student in students:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05)
    plain, again = (gradients(s, teacher, loss, w) for s, w in zip(students, (False, True), strict=True))
    assert any(bool(g.any()) for g in plain)
    size = torch.stack([g.norm() for g in plain]).norm()
    for ours, theirs in zip(again, plain, strict=True):
        assert float((ours - theirs).norm()) <= 1e-6 * float(size)


def kept_for_backward(wanted: bool) -> int:
    """Bytes of all tensors that a training step saved for its backward pass."""
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    student = llama()
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradients(student, llama(1), DistillationLoss(), wanted)
    return sum(t.untyped_storage().nbytes() for at, t in seen.items() if at not in own)


def test_less_is_kept_between_forward_and_backward() -> None:
    # What goes into each of the two blocks is held beside what autograd saves.
    inputs = 2 * 3 * 20 * 16 * 4
    assert kept_for_backward(True) + inputs < 0.6 * kept_for_backward(False)


def test_a_thin_student_checkpoints_too_and_is_as_it_was_afterwards() -> None:
    model = llama()
    example = {"input_ids": batch()["input_ids"]}
    thin = slimfast.slim(model, example, params=0.7, include=["channel"])
    state = [dict(vars(module)) for module in thin.modules()]
    gradients(thin, model, DistillationLoss(), True)
    for module, names in zip(thin.modules(), state, strict=True):
        assert set(vars(module)) == set(names)
    # Nothing is left that makes the embeddings' output want gradients.
    assert not thin.get_submodule("model.embed_tokens")._forward_hooks
    layers: Any = thin.get_submodule("model.layers")
    with checkpointed(thin, True):
        assert all(layer.gradient_checkpointing for layer in layers)
    assert not any(layer.gradient_checkpointing for layer in layers)


def test_one_that_checkpoints_already_goes_on_doing_so() -> None:
    student = llama()
    with checkpointed(student, True):
        gradients(student, llama(1), DistillationLoss(), True)
        assert all(layer.gradient_checkpointing for layer in student.model.layers)


def test_networks_that_cannot_are_refused_in_one_line() -> None:
    train = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(TypeError, match=r"has gradient_checkpointing_enable, .* got Linear; leave it out"):
        distill(
            nn.Linear(4, 2), teacher=nn.Linear(4, 2), train=train, gradient_checkpointing=True, progress=False
        )
    student = llama()
    type(student).supports_gradient_checkpointing = False
    try:
        with pytest.raises(TypeError, match="gradient_checkpointing is not for LlamaForCausalLM: "):
            gradients(student, llama(1), DistillationLoss(), True)
    finally:
        del type(student).supports_gradient_checkpointing
