"""Known architectures: the groups one reads off their papers, and that nothing prunable is frozen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import members, prunable, reasons, roles, summary, trace, trace_example, units
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision


class _Block(nn.Module):
    """A basic block whose shortcut is padded with zero channels (He et al. 2016, option A)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.pad, self.stride = (o - i) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


def _cifar_resnet(n: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for out in (16, 32, 64):
        for b in range(n):
            layers.append(_Block(width, out, 2 if b == 0 and out > 16 else 1))
            width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def test_cifar_resnet56_has_three_nested_streams_and_27_inner_widths():
    graph = trace(_cifar_resnet(9), 1, 3, 32, 32)
    streams = {group.name: group for group in graph if group.kind == "residual"}
    inner = [group for group in graph if group.kind == "channel"]
    # the 16 channels of the first stage are channels 8..23 of the second and 24..39 of the third
    first, second, third = streams.values()
    # and the channels padded on either side go in pairs, for one number says how many they are
    assert (first.n, second.n, third.n) == (16, 8, 16)
    assert members(first)["0.weight", 0] == list(range(16))
    assert members(first)["12.conv2.weight", 0] == [*[-1] * 8, *range(16), *[-1] * 8]
    assert members(first)["32.weight", 1] == [*[-1] * 24, *range(16), *[-1] * 24]
    assert members(second)["12.conv2.weight", 0] == [*range(8), *[-1] * 16, *range(8)]
    assert members(second)["32.weight", 1] == [*[-1] * 16, *range(8), *[-1] * 16, *range(8), *[-1] * 16]
    assert members(third)["32.weight", 1] == [*range(16), *[-1] * 32, *range(16)]
    assert sorted(group.n for group in inner) == [16] * 9 + [32] * 9 + [64] * 9
    # the biases of the classifier are the output
    assert prunable(graph) > 0.9999


@pytest.fixture(scope="module")
def timm():
    prepare_torchvision()
    return pytest.importorskip("timm")


def _timm(timm, name: str, size: int = 224):
    with torch.device("meta"):
        model = timm.create_model(name)
    return trace_example(model, torch.empty(2, 3, size, size, device="meta"))


def test_resnet18(timm):
    graph = _timm(timm, "resnet18")
    assert summary(graph) == {
        "conv1[residual]": ("residual", 64),
        **{f"layer{s}.{b}.conv1": ("channel", 32 << s) for s in range(1, 5) for b in range(2)},
        **{f"layer{s}.0.conv2[residual]": ("residual", 32 << s) for s in range(2, 5)},
    }
    assert {
        tensor for (tensor, dim), role in roles(graph["conv1[residual]"]).items() if role == "producer"
    } == {
        "conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.1.conv2.weight",
    }
    assert reasons(graph) == {("conv1.weight", 1): {"network input"}, ("fc.weight", 0): {"network output"}}


def test_densenet121_layers_are_read_by_all_that_follow(timm):
    graph = _timm(timm, "densenet121")
    assert len(graph) == 1 + 3 + 2 * (6 + 12 + 24 + 16)
    layer = graph["features.denseblock1.denselayer2.conv2"]
    assert layer.n == 32
    readers = {t for (t, _), role in roles(layer).items() if role == "consumer"}
    block = "features.denseblock1.denselayer{}.conv1.weight"
    assert readers == {*(block.format(i) for i in range(3, 7)), "features.transition1.conv.weight"}
    # its 32 channels come after the 64 of the stem and the 32 of the first layer
    place = members(layer)["features.transition1.conv.weight", 1]
    assert place == [*[-1] * 96, *range(32), *[-1] * (256 - 128)]


def test_vit_tiny(timm):
    graph = _timm(timm, "vit_tiny_patch16_224")
    assert summary(graph) == {
        "patch_embed.proj[residual]": ("residual", 192),
        **{f"blocks.{i}.attn.qkv[head]": ("head", 3) for i in range(12)},
        **{f"blocks.{i}.mlp.fc1": ("channel", 768) for i in range(12)},
    }
    assert members(graph["blocks.3.attn.qkv[head]"])["blocks.3.attn.qkv.weight", 0] == units(3, 64) * 3
    stream = roles(graph["patch_embed.proj[residual]"])
    assert stream["pos_embed", 2] == stream["cls_token", 2] == stream["norm.weight", 0] == "follower"


def test_swin_tiny_couples_merged_patches(timm):
    graph = _timm(timm, "swin_tiny_patch4_window7_224")
    stream = graph["patch_embed.proj[residual]"]
    assert stream.n == 96
    # patch merging puts four neighbours one after the other
    assert members(stream)["layers.1.downsample.reduction.weight", 1] == [*range(96)] * 4
    heads = graph["layers.0.blocks.0.attn.qkv[head]"]
    assert heads.n == 3
    assert roles(heads)["layers.0.blocks.0.attn.relative_position_bias_table", 1] == "follower"


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_large_100",
        "efficientnet_b0",
        "convnext_tiny",
        "regnety_008",
        "fastvit_t8",
        "ghostnet_100",
    ],
)
def test_nothing_but_inputs_and_outputs_is_frozen(timm, name):
    graph = _timm(timm, name)
    told = set().union(*reasons(graph).values())
    assert told <= {"network input", "network output"}
    assert prunable(graph) > 0.99


def test_regnety_goes_by_groups_and_positions(timm):
    graph = _timm(timm, "regnety_008")
    # 64 channels in groups of 16
    groups = graph["s1.b1.conv1.conv[block]"]
    assert groups.n == 4
    assert members(groups)["s1.b1.conv2.conv.weight", 0] == units(4, 16)
    assert members(groups)["s1.b1.se.fc1.weight", 1] == units(4, 16)
    assert members(graph["s1.b1.conv1.conv"])["s1.b1.conv2.conv.weight", 1] == list(range(16))


@pytest.fixture(scope="module")
def transformers():
    prepare_torchvision()
    return pytest.importorskip("transformers")


_IDS = {"input_ids": torch.arange(14).reshape(2, 7)}
_SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_bert_for_classification(transformers):
    config = transformers.BertConfig(**_SMALL)
    graph = trace_example(transformers.BertForSequenceClassification(config), _IDS)
    assert summary(graph)["bert.embeddings.word_embeddings[residual]"] == ("residual", 32)
    first = "bert.encoder.layer.0"
    assert summary(graph)[f"{first}.intermediate.dense"] == ("channel", 48)
    heads = graph[f"{first}.attention.self.query[head]"]
    assert members(heads)[f"{first}.attention.self.value.weight", 0] == units(4, 8)
    assert members(heads)[f"{first}.attention.output.dense.weight", 1] == units(4, 8)
    assert prunable(graph) > 0.99


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_llama_at_every_ratio_of_query_to_key_heads(transformers, kv):
    config = transformers.LlamaConfig(**_SMALL, num_key_value_heads=kv)
    graph = trace_example(transformers.LlamaForCausalLM(config), _IDS)
    assert summary(graph)["model.embed_tokens[residual]"] == ("residual", 32)
    assert summary(graph)["model.layers.1.mlp.gate_proj"] == ("channel", 48)
    attention = "model.layers.1.self_attn"
    heads = [group for group in graph if group.kind == "head" and group.name.startswith(attention)]
    assert sorted(group.n for group in heads) == sorted(n for n in {1: [4], 2: [2, 2], 4: [4]}[kv])
    if kv > 1:
        by_kv = next(g for g in heads if (f"{attention}.k_proj.weight", 0) in members(g))
        assert members(by_kv)[f"{attention}.k_proj.weight", 0] == units(kv, 8)
        assert members(by_kv)[f"{attention}.q_proj.weight", 0] == units(kv, 32 // kv)
    # rotary positions j and j + 4 turn together, in every layer by the same frequency
    pairs = next(g for g in graph if g.kind == "head_dim" and (f"{attention}.q_proj.weight", 0) in members(g))
    assert members(pairs)[f"{attention}.k_proj.weight", 0] == [0, 1, 2, 3] * 2 * kv
    assert members(pairs)["model.layers.0.self_attn.q_proj.weight", 0] == [0, 1, 2, 3] * 8
    assert prunable(graph) > 0.99


def test_tied_gpt2_with_its_transposed_weights(transformers):
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)
    graph = trace_example(transformers.GPT2LMHeadModel(config), _IDS)
    heads = graph["transformer.h.0.attn.c_attn[head]"]
    assert members(heads)["transformer.h.0.attn.c_attn.weight", 1] == units(4, 8) * 3
    assert graph.tied["lm_head.weight"] == "transformer.wte.weight"
    assert roles(graph["transformer.wte[residual]"])["transformer.wte.weight", 1] == "producer"
