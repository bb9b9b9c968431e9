"""Thin transformers that the hub's own classes load, in a process that knows no slimfast."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support.pruning_cases import plan_of
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.huggingface.uniform import plan_uniform
from slimfast.pruning.prune import prune_channels

prepare_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEXT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 16}
DECODER = TEXT | {"num_key_value_heads": 2, "use_cache": False}
IDS = {"input_ids": torch.tensor([[0, 39, 3, 7, 8, 1], [5, 2, 2, 30, 0, 9]])}
IMAGE = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}

CASES = {
    "bert": ("BertForMaskedLM", "BertConfig", TEXT, IDS),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        IDS,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 40, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
        | {"bos_token_id": 0, "eos_token_id": 0},
        IDS,
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {k: v for k, v in TEXT.items() if k != "intermediate_size"}
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "use_cache": False},
        IDS,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, IDS),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER, IDS),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, IDS),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
        | {"image_size": 16, "patch_size": 8},
        IMAGE,
    ),
}

# What a user runs who has never heard of slimfast.
STOCK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import transformers
from pathlib import Path
for folder in sorted(Path(sys.argv[1]).iterdir()):
    inputs = torch.load(folder / "inputs.pt")
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder)
    transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model.eval()(**inputs)[0], folder / "output.pt")
assert not [name for name in sys.modules if name.startswith("slimfast")]
"""


def network(name):
    kind, config, options, inputs = CASES[name]
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval(), inputs


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    """Every case planned, pruned, saved, and loaded by the stock classes in one new process."""
    root = tmp_path_factory.mktemp("harvest")
    found = {}
    for name in CASES:
        model, inputs = network(name)
        plan = plan_uniform(model, inputs, params=0.65)
        thin = prune_channels(model, plan, example=inputs)
        save_pretrained(thin, root / name, inputs)
        torch.save(inputs, root / name / "inputs.pt")
        with torch.no_grad():
            found[name] = (model, plan, thin, thin(**inputs)[0])
    script = root.parent / "stock.py"
    script.write_text(STOCK)
    done = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return root, found


@pytest.mark.parametrize("name", CASES)
def test_the_stock_class_computes_what_the_thin_network_does(harvest, name):
    root, found = harvest
    model, plan, thin, expected = found[name]
    assert plan.cost_after.params <= 0.65 * plan.cost_before.params
    assert plan.cost_after.params == sum(p.numel() for p in thin.parameters())
    output = torch.load(root / name / "output.pt")
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    config = json.loads((root / name / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    narrowed = {key for key, value in model.config.to_dict().items() if config.get(key, value) != value}
    assert narrowed & {
        "hidden_size",
        "intermediate_size",
        "dim",
        "hidden_dim",
        "n_embd",
        "n_inner",
        "ffn_dim",
    }


def test_heads_go_in_every_layer_alike(harvest):
    """What the plan cuts it cuts to one number in all layers of a kind, heads among it."""
    _, found = harvest
    cut_heads = 0
    for _, plan, _, _ in found.values():
        widths: dict[tuple[str, int], set[int]] = {}
        for group in plan.groups:
            kind = "".join("*" if c.isdecimal() else c for c in group.name)
            widths.setdefault((kind, group.n), set()).add(group.width)
            cut_heads += group.kind == "head" and group.width < group.n
        assert all(len(several) == 1 for several in widths.values())
        assert not any(group.kind == "head_dim" and group.width < group.n for group in plan.groups)
    assert cut_heads > 0


def test_layers_of_different_widths_are_refused_and_nothing_is_written(tmp_path):
    model, inputs = network("bert")
    graph = trace_channels(model, inputs, include=["*layer.0.intermediate.dense"])
    thin = prune_channels(model, plan_of(graph, {}, widths={graph[0].name: 20}))
    with pytest.raises(SlimfastError, match="no attributes of BertConfig make a BertForMaskedLM of these"):
        save_pretrained(thin, tmp_path / "thin", inputs)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    model, inputs = network("bert")
    (tmp_path / "thin").mkdir()
    (tmp_path / "thin" / "precious").write_text("")
    with pytest.raises(SlimfastError, match="it is there already"):
        save_pretrained(model, tmp_path / "thin", inputs)


def test_a_stock_class_that_computes_something_else_is_refused(tmp_path):
    """A scale that no configuration knows of: the shapes are right, the outputs are not."""
    model, inputs = network("vit")
    thin = prune_channels(model, plan_uniform(model, inputs, params=0.7), example=inputs)
    thin.vit.layernorm.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(SlimfastError, match="save_pretrained: "):
        save_pretrained(thin, tmp_path / "thin", inputs)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_writes_into_its_arguments_is_compared_and_leaves_them_alone(tmp_path, monkeypatch):
    model, inputs = network("vit")
    forward = type(model).forward

    def doubling(self, pixel_values, **rest):
        return forward(self, pixel_values.mul_(2), **rest)

    monkeypatch.setattr(type(model), "forward", doubling)
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    thin = prune_channels(model, plan_uniform(model, given, params=0.7), example=given)
    save_pretrained(thin, tmp_path / "thin", given)
    assert all(torch.equal(given[name], inputs[name]) for name in inputs)


def test_arguments():
    with pytest.raises(TypeError, match="expected a transformers model, got Linear"):
        plan_uniform(nn.Linear(2, 2), torch.zeros(1, 2), params=0.5)
    with pytest.raises(TypeError, match="expected a transformers model, got Linear"):
        save_pretrained(nn.Linear(2, 2), "thin", torch.zeros(1, 2))
    model, inputs = network("bert")
    with pytest.raises(ValueError, match="expected params, macs, latency or peak_memory, got none"):
        plan_uniform(model, inputs)
    with pytest.raises(SlimfastError, match=r"have params <= 10 \(at least "):
        plan_uniform(model, inputs, params=10)
