"""Networks of timm and transformers, and a trained ResNet: thin, they compute what the masked ones do."""

from __future__ import annotations

import pytest
import torch
from support.paths import DATA
from support.pruning_cases import plan_of, random_keeps
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.graph import trace_channels
from slimfast.plans import plan as make_plan
from slimfast.plans.costs import count_module
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.verification import verify


def check(model: nn.Module, x, *, share: float = 0.6) -> nn.Module:
    """The network with this share of each group kept at random, after it is verified."""
    model.eval()
    graph = trace_channels(model, x)
    assert len(graph) > 0
    keeps = random_keeps(graph, 0, share)
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    found = verify(model, thin, graph, keeps, x)
    assert found.dtype == "float64"
    assert found.max_error <= found.tolerance < 1e-9
    assert len(found.compared) > 0
    return thin


def timm_model(name: str, **options) -> nn.Module:
    prepare_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def test_timm_resnet18():
    thin = check(timm_model("resnet18", num_classes=7), torch.randn(1, 3, 64, 64))
    assert thin.fc.out_features == 7


def test_timm_vision_transformer_with_fused_qkv():
    model = timm_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3)
    thin = check(model, torch.randn(2, 3, 32, 32))
    attention = thin.blocks[0].attn
    assert attention.attn_dim == attention.num_heads * attention.head_dim == attention.proj.in_features
    assert attention.num_heads < model.blocks[0].attn.num_heads


def test_timm_squeeze_excite_and_depthwise():
    thin = check(timm_model("mobilenetv3_small_050", num_classes=3), torch.randn(1, 3, 64, 64))
    convs = [m for m in thin.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.groups == m.in_channels == m.out_channels == m.weight.shape[0] for m in convs)


IDS = torch.tensor([[1, 4, 2, 9, 10, 0], [3, 3, 7, 5, 0, 8]])
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SMALL |= {"vocab_size": 20, "max_position_embeddings": 16}


def hugging_face():
    """The transformers package, which imports torchvision."""
    prepare_torchvision()
    return pytest.importorskip("transformers", reason="transformers is not installed")


def test_hugging_face_bert():
    transformers = hugging_face()
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    thin = check(model, {"input_ids": IDS})
    attention = thin.encoder.layer[0].attention.self
    assert attention.query.out_features < model.encoder.layer[0].attention.self.query.out_features
    assert attention.attention_head_size < 4


def test_hugging_face_llama_with_grouped_queries():
    transformers = hugging_face()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    thin = check(transformers.LlamaForCausalLM(config), {"input_ids": IDS})
    assert thin.lm_head.weight is thin.model.embed_tokens.weight
    assert thin.model.layers[0].mlp.up_proj.out_features < 24


def test_the_real_resnet56_at_half_its_macs():
    from benchmarks.accuracy.networks.resnet_cifar import resnet56

    found = sorted((DATA / "weights").glob("resnet56-*.th"))
    if not found:
        pytest.skip(f"no resnet56 weights in {DATA}: set SLIMFAST_DATA")
    model, x = resnet56().load_pretrained(found[0]), torch.randn(1, 3, 32, 32)
    plan = make_plan(model, x, macs=0.5)
    thin = prune_channels(model, plan)
    counted = count_module(thin, x)
    assert (counted.params, counted.macs) == (plan.cost_after.params, plan.cost_after.macs)
    pads = [m for m in thin.modules() if hasattr(m, "pad_before")]
    assert len(pads) == 2
    assert any((m.pad_before, m.pad_after) not in ((8, 8), (16, 16)) for m in pads)
