"""Networks on which grouping elsewhere does not end: it ends, and what it finds is pruned and verified."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.graph_helpers import reasons, summary, units
from torch import Tensor, nn

import slimfast
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.propagation.follow import propagate
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify

ENDS = {"network input", "network output"}


def _pruned(model: nn.Module, example: object, share: float = 0.5) -> ChannelGraph:
    """The graph, after the network was cut to a share of its parameters and compared with the masked one."""
    graph = trace_channels(model.eval(), example)
    plan = slimfast.plan_widths(graph, slimfast.measure_spectra(model, graph), params=share)
    plan = slimfast.select(model, plan)
    thin = slimfast.prune_channels(model, plan, verify=False)
    wide, left = (sum(p.numel() for p in m.parameters()) for m in (model, thin))
    assert share - 0.01 < left / wide <= share
    found = verify(model, thin, graph, {g.name: torch.tensor(g.keep).numpy() for g in plan.groups}, example)
    cut = {g.name for g in plan.groups if g.width < g.n}
    assert {*found.compared, *found.inexact} == cut
    assert set(found.inexact) == {g.name for g in graph if g.inexact} & cut
    assert found.compared
    return graph


@pytest.fixture(scope="module")
def torchvision():
    prepare_torchvision()
    return pytest.importorskip("torchvision.models")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _small_swin(torchvision) -> nn.Module:
    """swin_t with two blocks in every stage; 64 x 64 pixels are no multiple of its windows, so it pads."""
    torch.manual_seed(0)
    return torchvision.SwinTransformer([4, 4], 96, [2, 2, 2, 2], [3, 6, 12, 24], [7, 7], num_classes=10)


def test_swin_t(torchvision, images):
    graph = _pruned(_small_swin(torchvision), images)
    assert Counter(group.kind for group in graph) == {"channel": 8, "residual": 8}
    assert set().union(*reasons(graph).values()) <= ENDS


def test_windows_pads_and_shifts_make_no_labels_of_axes_that_are_frozen(torchvision, images):
    """They doubled with every block, and grouping took minutes."""
    network = Network.of(_small_swin(torchvision).eval())
    flow = propagate(network, record(network, (images,), {}), (images,), {})
    axes = [axis for traced in flow.calls for output in traced.outputs for axis in output]
    assert max(axis.labels.shape[1] for axis in axes) <= 4


def test_maxvit_t(torchvision, images):
    """maxvit_t with windows and grids of 2 x 2, so that it takes small images."""
    torch.manual_seed(0)
    model = torchvision.MaxVit(
        input_size=(64, 64), stem_channels=64, partition_size=2, block_channels=[64, 128, 256, 512],
        block_layers=[1, 1, 2, 1], head_dim=32, stochastic_depth_prob=0.0, num_classes=10,
    )  # fmt: skip
    graph = _pruned(model, images)
    # each of five blocks: the inner width of its convolutions, its squeeze, the two hidden layers after its
    # attentions; beside them the two layers of the stem and the classifier's
    kinds = Counter(group.kind for group in graph)
    assert kinds == {"channel": 4 * 5 + 3, "residual": 8}
    assert set().union(*reasons(graph).values()) <= ENDS


def test_shufflenet_v2(torchvision, images):
    torch.manual_seed(0)
    graph = _pruned(torchvision.shufflenet_v2_x0_5(num_classes=10), images)
    inner = [group for group in graph if ".branch" in group.name]
    assert len(inner) >= 16


def test_levit(images):
    prepare_torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    graph = _pruned(timm.create_model("levit_128s", img_size=64, num_classes=10), images)
    assert Counter(group.kind for group in graph) == {
        "residual": 3,
        "channel": 14,
        "head": 11,
        "head_dim": 22,
    }
    assert set().union(*reasons(graph).values()) <= ENDS


@pytest.fixture(scope="module")
def transformers():
    prepare_torchvision()
    return pytest.importorskip("transformers")


TOKENS = {"input_ids": torch.arange(14).reshape(2, 7)}
SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def _heads(graph: ChannelGraph, tensor: str) -> list[int]:
    """The number of units of each head group that has a say in the rows of this weight."""
    return sorted(g.n for g in graph if g.kind == "head" and any(m.tensor == tensor for m in g.members))


@pytest.mark.parametrize("key_heads", [8, 4, 2, 1])
def test_llama_at_a_ratio_of_query_to_key_heads_of_1_2_4_and_8(transformers, key_heads):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_attention_heads=8, num_key_value_heads=key_heads)
    graph = _pruned(transformers.LlamaForCausalLM(config), TOKENS)
    query, key = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    times = 8 // key_heads
    assert _heads(graph, query) == sorted(n for n in (key_heads, times) if n > 1)
    assert _heads(graph, key) == [key_heads] * (key_heads > 1)


def test_qwen3_with_16_query_heads_on_8_key_heads(transformers):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SMALL, num_attention_heads=16, num_key_value_heads=8, head_dim=8)
    graph = _pruned(transformers.Qwen3ForCausalLM(config), TOKENS)
    query, key = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    assert (_heads(graph, query), _heads(graph, key)) == ([2, 8], [8])


def test_the_widths_of_qwen3_0_6b(transformers):
    config = transformers.Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(config)
        example = {"input_ids": torch.zeros(1, 7, dtype=torch.int64)}
    graph = trace_channels(model, example, settle=False)
    found = summary(graph)
    assert found["model.embed_tokens[residual]"] == ("residual", 1024)
    for layer in range(2):
        path = f"model.layers.{layer}"
        assert found[f"{path}.mlp.gate_proj"] == ("channel", 3072)
        assert _heads(graph, f"{path}.self_attn.q_proj.weight") == [2, 8]
        key_heads = next(g for g in graph if g.kind == "head" and g.n == 8 and f"{path}." in g.name)
        rows = next(m.units for m in key_heads.members if m.tensor == f"{path}.self_attn.k_proj.weight")
        assert rows.tolist() == units(8, 128)
