"""Residual blocks are found where they are, and what is none is left alone for a reason."""

from __future__ import annotations

import pytest
import torch
from support.depth_cases import Mlps, PreNorm, ResNet, UNet, bert, gpt2, llama, t5, tokens
from torch import nn

from slimfast.graph.recording.forward import record
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.network import Network
from slimfast.pruning.depth.stacks import find_stacks

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def stacks_of(model, example):
    network = Network.of(model.eval())
    return {stack.path: stack for stack in find_stacks(network, record(network, *arguments(example)))}


@pytest.mark.parametrize(
    ("make", "path", "attention", "mlp", "writers"),
    [
        (llama, "model.layers", "self_attn", "mlp", ("self_attn.o_proj", "mlp.down_proj")),
        (gpt2, "transformer.h", "attn", "mlp", ("attn.c_proj", "mlp.c_proj")),
    ],
)
def test_a_decoder_has_attention_and_mlp_in_each_layer(make, path, attention, mlp, writers):
    (stack,) = stacks_of(make(3), tokens()).values()
    assert (stack.path, list(stack.blocks), stack.kept) == (path, [f"{path}.{i}" for i in range(3)], {})
    for name, block in stack.blocks.items():
        assert [branch.name for branch in block.branches] == [f"{name}.{attention}", f"{name}.{mlp}"]
        assert [branch.writer for branch in block.branches] == [f"{name}.{writer}" for writer in writers]
        assert block.plain
        assert all(branch.alone for branch in block.branches)


def test_a_block_whose_shortcut_computes_stays():
    stacks = stacks_of(ResNet(), IMAGES)
    assert list(stacks["stage1"].blocks) == ["stage1.0", "stage1.1", "stage1.2"]
    assert list(stacks["stage2"].blocks) == ["stage2.1", "stage2.2"]
    assert "shortcut computes" in stacks["stage2"].kept["stage2.0"]
    assert not stacks["stage1"].blocks["stage1.0"].plain, "a relu follows the addition"


def test_a_block_behind_which_two_read_stays():
    (stack,) = (s for s in stacks_of(UNet(), torch.randn(2, 6)).values() if s.path == "down")
    assert list(stack.blocks) == ["down.2"]
    assert all("read in several places" in stack.kept[f"down.{i}"] for i in (0, 1))


def test_layers_behind_a_norm_are_blocks_that_are_not_plain():
    (stack,) = stacks_of(bert(3), {"input_ids": tokens()["input_ids"]}).values()
    assert len(stack.blocks) == 3
    assert not any(block.plain for block in stack.blocks.values())
    assert stack.blocks["encoder.layer.1"].branches[0].writer == "encoder.layer.1.attention.output.dense"


def test_a_layer_that_makes_the_positions_of_the_others_stays():
    call = {"input_ids": tokens()["input_ids"], "decoder_input_ids": tokens()["input_ids"]}
    stacks = stacks_of(t5(), call)
    assert sorted(stacks) == ["decoder.block", "encoder.block"], "the parts of a layer are no stack"
    assert list(stacks["encoder.block"].blocks) == ["encoder.block.1", "encoder.block.2"]
    assert "read elsewhere" in stacks["encoder.block"].kept["encoder.block.0"]
    assert len(stacks["decoder.block"].blocks["decoder.block.2"].branches) == 3


class Shared(nn.Module):
    """The same block three times, or its weight in two places."""

    def __init__(self, times: int) -> None:
        super().__init__()
        block = PreNorm(6)
        self.blocks = nn.ModuleList([block] * times + [PreNorm(6) for _ in range(2)])
        if times == 1:
            self.head = nn.Linear(6, 12)
            self.head.weight = block.inner.weight

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x) if hasattr(self, "head") else x


@pytest.mark.parametrize(("times", "reason"), [(3, "the same module"), (1, "shares")])
def test_what_is_shared_stays(times, reason):
    (stack,) = stacks_of(Shared(times), torch.randn(2, 6)).values()
    assert reason in stack.kept["blocks.0"]
    assert len(stack.blocks) == 2


def test_layers_without_a_shortcut_are_no_blocks():
    assert not stacks_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.randn(2, 4))
    assert len(stacks_of(Mlps(), torch.randn(2, 6))["blocks"].blocks) == 4
