"""From GGUF and classes with code of their own to thin folders, and widths that few bits can hold."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_decoders import llama
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import slimfast
from slimfast.errors import UnsupportedGraph

EXAMPLE = {"input_ids": torch.arange(1, 13)[None]}


def write_gguf(path: Path, hidden: int = 64, inner: int = 96, layers: int = 2, heads: int = 4) -> None:
    """Write a Llama of random weights in eight bits, as llama.cpp's tools do."""
    gguf = pytest.importorskip("gguf")
    writer, kind = gguf.GGUFWriter(str(path), "llama"), gguf.GGMLQuantizationType.Q8_0
    numbers = {"context_length": 64, "embedding_length": hidden, "block_count": layers, "head_count": heads}
    numbers |= {"feed_forward_length": inner, "head_count_kv": heads // 2, "vocab_size": 64}
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = 0.1 * generator.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, dtype=np.float32))

    add("token_embd.weight", 64, hidden)
    add("output.weight", 64, hidden)
    add_norm("output_norm.weight")
    for layer in range(layers):
        block = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            add_norm(f"{block}{name}.weight")
        for name, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("output", hidden)):
            add(f"{block}attn_{name}.weight", rows, hidden)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            add(f"{block}ffn_{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_from_gguf_is_cut_and_saved_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    plan = slimfast.plan_uniform(model, EXAMPLE, params=0.8, within="model.layers.*")
    thin = slimfast.prune_channels(model, plan)
    slimfast.save_pretrained(thin, tmp_path / "thin", EXAMPLE)
    assert "quantization_config" not in json.loads((tmp_path / "thin" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "thin")
    assert torch.equal(loaded(**EXAMPLE).logits, thin(**EXAMPLE).logits)
    assert loaded.config.intermediate_size < 96


def test_a_uniform_form_fills_the_blocks_of_few_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    plan = slimfast.plan_uniform(model, EXAMPLE, params=0.77, within="model.layers.*", multiple_of=32)
    thin = slimfast.prune_channels(model, plan)
    slimfast.save_pretrained(thin, tmp_path / "thin", EXAMPLE)
    config = json.loads((tmp_path / "thin" / "config.json").read_text())
    # What a converter looks for: the class by its name, one number for all layers, weights under their names.
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["intermediate_size"] == thin.model.layers[0].mlp.down_proj.in_features < 256
    assert set(LlamaForCausalLM(LlamaConfig(**config)).state_dict()) == set(model.state_dict())
    matrices = [p for p in thin.parameters() if p.dim() == 2]
    assert all(p.shape[1] % 32 == 0 for p in matrices)
    gguf = pytest.importorskip("gguf")
    for matrix in matrices:
        packed = gguf.quants.quantize(matrix.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
        again = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        assert np.abs(again - matrix.detach().numpy()).max() <= float(matrix.detach().abs().max()) / 127


CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TinyConfig(PretrainedConfig):
    model_type = "tiny_of_its_own"

    def __init__(self, vocab_size=40, hidden_size=16, inner=32, layers=2, **kwargs):
        self.vocab_size, self.hidden_size, self.inner, self.layers = vocab_size, hidden_size, inner, layers
        super().__init__(**kwargs)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.inner)
        self.down = nn.Linear(config.inner, config.hidden_size)

    def forward(self, x):
        return x + self.down(torch.nn.functional.silu(self.up(x.cumsum(1))))


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, **kwargs):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return CausalLMOutput(logits=self.head(x))
"""


def test_a_class_with_code_of_its_own_is_saved_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "code_of_its_own.py").write_text(CODE)
    import code_of_its_own as code

    code.TinyConfig.register_for_auto_class()
    code.TinyForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    torch.manual_seed(0)
    code.TinyForCausalLM(code.TinyConfig()).save_pretrained(tmp_path / "wide")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    thin = slimfast.prune_channels(model, slimfast.plan_uniform(model, EXAMPLE, params=0.8))
    slimfast.save_pretrained(thin, tmp_path / "thin", EXAMPLE)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "thin", trust_remote_code=True)
    assert loaded.config.inner < 32
    assert torch.equal(loaded(**EXAMPLE).logits, thin(**EXAMPLE).logits)


def test_weights_of_few_bits_are_refused_with_what_to_do() -> None:
    model = llama()
    with warnings.catch_warnings():
        # That such layers will go from PyTorch.
        warnings.simplefilter("ignore")
        model.model.layers[0].mlp.up_proj = torch.ao.nn.quantized.Linear(16, 24)
    with pytest.raises(UnsupportedGraph, match=r"mlp.up_proj is quantised .*model.dequantize\(\)") as found:
        slimfast.trace_channels(model, EXAMPLE)
    assert "\n" not in str(found.value)
