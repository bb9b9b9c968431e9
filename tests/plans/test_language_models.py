"""Language models that are cut without data are told to be of no use, in one line; other networks are not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import slimfast

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
TOKENS = {"input_ids": torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(0))}
BEYOND_USE = r"by the weights alone, after which the perplexity of a language model as LlamaForCausalLM is"


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=24, **SIZES)).eval()


def told(of: Any) -> list[str]:
    return [str(one.message) for one in of]


def test_a_plan_without_a_calibration_warns_in_one_line(llama: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"^plan: widths are chosen {BEYOND_USE}") as found:
        slimfast.plan(llama, TOKENS, params=0.8)
    assert len(found) == 1
    assert "\n" not in told(found)[0]


def test_a_plan_of_shards_warns_too(llama: Any, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"^plan: widths are chosen {BEYOND_USE}"):
        slimfast.plan_checkpoint(tmp_path / "model.safetensors", llama, TOKENS, params=0.8)


def test_units_chosen_by_weights_warn_and_those_of_activations_do_not(llama: nn.Module) -> None:
    graph = slimfast.trace_channels(llama, TOKENS)
    calibration = slimfast.calibrate(llama, graph, [TOKENS])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = slimfast.plan(llama, TOKENS, params=0.8, calibration=calibration)
        chosen = slimfast.select(llama, plan, method="activations", calibration=calibration)
        slimfast.prune_channels(llama, chosen)
        slimfast.prune_channels(llama, plan, select="activations", calibration=calibration)
        slimfast.prune_channels(llama, slimfast.plan_widths(graph, {}, overrides={"*": 1.0}))
    with pytest.warns(UserWarning, match=f"^prune: units are chosen by lookahead, {BEYOND_USE}") as found:
        slimfast.prune_channels(llama, plan)
    assert len(found) == 1
    with pytest.warns(UserWarning, match=f"^select: units are chosen by l2, {BEYOND_USE}"):
        slimfast.select(llama, plan, method="l2")


def test_other_networks_are_not_warned_of() -> None:
    bert = BertModel(BertConfig(hidden_size=16, intermediate_size=24, **SIZES)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slimfast.slim(bert, TOKENS, params=0.9)
