"""Texts that a training cannot learn from are refused before they reach a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_decoders import VOCABULARY, llama, padded, texts
from torch import Tensor

from slimfast.distillation import CachedTeacher, DistillationLoss, distill
from slimfast.errors import SlimfastError


def good() -> dict[str, Tensor]:
    return padded(texts(5, 8), 8)


def changed(name: str) -> dict[str, Tensor]:
    batch = good()
    if name == "beyond":
        batch["input_ids"][1, 2] = VOCABULARY
    elif name == "negative":
        batch["input_ids"][0, 0] = -1
    elif name == "empty":
        batch["attention_mask"][1] = 0
    elif name == "long":
        batch = padded(texts(33), 33)
    return batch


MESSAGES = {
    "beyond": r"distill: expected tokens of 0 to 39, .* got 40 \(batch 1\); use the tokenizer",
    "negative": r"distill: expected tokens of 0 to 39, .* got -1 \(batch 1\); use the tokenizer",
    "empty": "distill: row 1 of batch 1 is padding alone: its mask is 0 everywhere; leave it out",
    "long": r"at most 32 positions, those of LlamaForCausalLM, got 33 \(batch 1\); cut the text",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_text_that_cannot_be_read_is_refused_by_its_batch(name: str) -> None:
    train = [good(), changed(name)]
    with pytest.raises(SlimfastError, match=MESSAGES[name]) as found:
        distill(llama(1), teacher=llama(), train=train, loss=DistillationLoss(hard=0), progress=False)
    assert "\n" not in str(found.value)


def test_a_smaller_vocabulary_of_the_teacher_counts_behind_a_cache_too(tmp_path: Any) -> None:
    teacher = llama()
    teacher.set_input_embeddings(torch.nn.Embedding(20, 16))
    batch = good()
    batch["input_ids"].clamp_(max=25)[0, 0] = 25
    cached = CachedTeacher(teacher, tmp_path / "top", top=30, temperature=1.0)
    with pytest.raises(SlimfastError, match=r"expected tokens of 0 to 19, .* got 25 \(batch 0\)"):
        distill(llama(1), teacher=cached, train=[batch], progress=False)
