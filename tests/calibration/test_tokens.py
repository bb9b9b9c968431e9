"""Tokens that a model cannot read are refused before they run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import slimfast
from slimfast.errors import SlimfastError

CONFIG = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=32,
    max_position_embeddings=12,
)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((1, 6), 32), "0 to 31, the vocabulary of LlamaForCausalLM, got 32"),
        (torch.tensor([[3, -1, 4]]), "0 to 31, the vocabulary of LlamaForCausalLM, got -1"),
        (torch.ones(1, 13, dtype=torch.int64), "at most 12 positions, those of LlamaForCausalLM, got 13"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_calibration_refuses_what_the_model_cannot_read(tokens: Tensor, message: str, named: bool) -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    good = torch.randint(32, (2, 12))

    def batch(ids: Tensor) -> object:
        return {"input_ids": ids} if named else ids

    graph = slimfast.trace_channels(model, batch(good))
    with pytest.raises(SlimfastError, match=rf"calibrate: expected .*{message} \(batch 1\)"):
        slimfast.calibrate(model, graph, [batch(good), batch(tokens)])
