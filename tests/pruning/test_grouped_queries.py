"""Query heads that share heads of keys and values: cut ones work with a mask, in every attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.pruning.padded_inputs import padded

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def network(kind: str = "llama", attention: str = "sdpa", heads: int = 2) -> Any:
    torch.manual_seed(0)
    config, model = MODELS[kind]
    made = config(**SIZES, num_key_value_heads=heads, attn_implementation=attention)
    return model(made).eval()


def left_padded() -> dict[str, Tensor]:
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    return {"input_ids": TOKENS.where(mask.bool(), 0), "attention_mask": mask}


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("traced", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_cut_of_query_heads_works_with_padding(kind: str, traced: str, masked: bool, heads: int) -> None:
    model, shared = network(kind, traced, heads), 6 // heads
    example = left_padded() if masked else {"input_ids": TOKENS}
    # One head of keys and values is no group, and those of its queries have no other beside them.
    group = "*q_proj[[]head[]]#2" if heads > 1 else "*q_proj[[]head[]]"
    plan = slimfast.plan(model, example, params=0.999, overrides={group: shared - 1})
    thin: Any = slimfast.prune_channels(model, plan, example=example)
    for layer in thin.model.layers:
        assert layer.self_attn.q_proj.out_features == heads * (shared - 1) * 8
        assert layer.self_attn.num_key_value_groups == shared - 1
    assert model.model.layers[0].self_attn.num_key_value_groups == shared
    outputs = []
    for attention in ("sdpa", "eager"):
        thin.config._attn_implementation = attention
        with torch.no_grad():
            outputs.append(thin(**left_padded()).logits[:, 3:])
            thin.generate(**left_padded(), max_new_tokens=3, do_sample=False)
    assert torch.allclose(*outputs, atol=1e-5)


def test_whole_heads_of_keys_and_values_leave_the_number_as_it_is() -> None:
    model = network()
    example = {"input_ids": TOKENS}
    plan = slimfast.plan(model, example, params=0.999, overrides={"*q_proj[[]head[]]": 1})
    thin: Any = slimfast.prune_channels(model, plan, example=example)
    assert [layer.self_attn.num_key_value_groups for layer in thin.model.layers] == [3, 3]
    with torch.no_grad():
        assert thin(**left_padded()).logits.shape == (2, 9, 64)


def test_the_verification_runs_padding() -> None:
    model, example = network(), {"input_ids": TOKENS}
    plan = slimfast.plan(model, example, params=0.999, overrides={"*q_proj[[]head[]]#2": 2})
    thin: Any = slimfast.prune_channels(model, plan, example=example)
    found = slimfast.verification_report(thin)
    assert found.padded
    assert "compared with padding too" in str(found)
    graph = slimfast.trace_channels(model, example)
    keeps = {group.name: torch.tensor(group.keep).numpy() for group in plan_with_units(model, plan).groups}
    for layer in thin.model.layers:
        layer.self_attn.num_key_value_groups = 3
    with pytest.raises(SlimfastError, match=r"verify: the thin network's forward fails: .*, with padding$"):
        slimfast.verify(model, thin, graph, keeps, example)


def plan_with_units(model: nn.Module, plan: slimfast.Plan) -> slimfast.Plan:
    return slimfast.select(model, plan)


def test_what_is_hidden_of_a_batch() -> None:
    hidden = padded(Network.of(network()), ((), {"input_ids": TOKENS}))
    assert hidden is not None
    mask = hidden[1]["attention_mask"]
    assert mask.tolist() == [[1] * 6 + [0] * 3, [1] * 9]
    assert hidden[1]["input_ids"] is TOKENS
    given = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    again = padded(Network.of(network()), ((), given))
    assert again is not None
    assert torch.equal(again[1]["attention_mask"], mask)
    assert bool(given["attention_mask"].all())


@pytest.mark.parametrize(
    "inputs",
    [
        ((), left_padded()),
        ((TOKENS[:, :2],), {}),
        ((torch.ones(2, 9, 48),), {}),
        ((TOKENS, torch.ones_like(TOKENS)), {}),
    ],
)
def test_what_has_padding_or_takes_none_is_left(inputs: Any) -> None:
    assert padded(Network.of(network()), inputs) is None


def test_a_network_without_a_mask_is_left() -> None:
    assert padded(Network.of(nn.Embedding(64, 4)), ((TOKENS,), {})) is None


class Fused(nn.Module):
    """One layer makes queries, keys and values: of every head, or of one head that all queries share."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.heads, self.size, self.shared = 4, 6, shared
        # Nobody reads it.
        self.num_groups = 4
        self.qkv = nn.Linear(10, (6 if shared else 12) * 6)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        if self.shared:
            q, k, v = y.split([y.shape[-1] - 2 * self.size, self.size, self.size], -1)
            q, k, v = (t.unflatten(-1, (-1, self.size)).transpose(1, 2) for t in (q, k, v))
        else:
            q, k, v = y.unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("shared", [True, False])
def test_a_number_named_like_a_group_count_follows_where_heads_share_keys_alone(shared: bool) -> None:
    torch.manual_seed(0)
    model, example = nn.Sequential(Fused(shared)).eval(), torch.randn(2, 5, 10)
    plan = slimfast.plan(model, example, params=0.999, overrides={"head": 3})
    (heads,) = (group for group in plan.groups if group.kind == "head")
    assert (heads.n, heads.width) == (4, 3)
    thin: Any = slimfast.prune_channels(model, plan, example=example)
    assert thin[0].out.in_features == 18
    assert thin[0].num_groups == (3 if shared else 4)
