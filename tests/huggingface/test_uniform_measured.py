"""Uniform plans under budgets of time and of memory: the thin network is inside when it is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import slimfast
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError

prepare_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def on_the_board(module: nn.Module, example: Any) -> float:
    """A device whose time is that of the weights it reads."""
    return 1e-6 + 1e-9 * sum(tensor.numel() for tensor in module.state_dict().values())


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=64, head_dim=8, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    example = {"input_ids": torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))}
    return model, example


def test_time_and_memory_are_met(decoder):
    model, example = decoder
    graph = slimfast.trace_channels(model, example, exclude=["head_dim"])
    table = slimfast.latency_table(graph, model, example, measure=on_the_board)
    found = slimfast.plan_uniform(model, example, latency=0.8, latency_table=table, peak_memory=0.85)
    thin = slimfast.prune_channels(model, found)
    assert on_the_board(thin, example) <= 0.8 * on_the_board(model, example)
    assert found.latency.measured == pytest.approx(on_the_board(thin, example))
    whole, cut = (slimfast.peak_memory(network, example).total for network in (model, thin))
    assert cut <= 0.85 * whole
    assert found.peak_memory.measured == cut
    # The layers of a kind are equally wide.
    inner = [group.width for group in found.groups if "gate_proj" in group.name or "up_proj" in group.name]
    assert len(inner) == 2
    assert len(set(inner)) == 1
    assert inner[0] < 96


def test_what_cannot_be_reached_is_told_in_bytes(decoder):
    model, example = decoder
    with pytest.raises(
        SlimfastError, match=r"have peak_memory <= .* kB \(at least [0-9.]+ kB of [0-9.]+ kB\)"
    ):
        slimfast.plan_uniform(model, example, peak_memory=0.01)


def test_some_budget_is_wanted(decoder):
    model, example = decoder
    with pytest.raises(ValueError, match="expected params, macs, latency or peak_memory, got none of them"):
        slimfast.plan_uniform(model, example)
