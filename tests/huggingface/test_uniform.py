"""What a stock class cannot hold is found before any weight is read, and said in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.huggingface import stock, uniform
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.huggingface.uniform import plan_uniform
from slimfast.pruning.prune import prune_channels

prepare_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IDS = torch.tensor([[0, 47, 3, 7, 8, 1, 30, 12]])
DECODER = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32, "head_dim": 8}
DECODER |= {"use_cache": False}


def gemma2(**more):
    torch.manual_seed(1)
    config = transformers.Gemma2Config(**DECODER, query_pre_attn_scalar=8, **more)
    return transformers.Gemma2ForCausalLM(config).eval(), {"input_ids": IDS}


def bart(layers=2):
    torch.manual_seed(1)
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", layers), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    config = transformers.BartConfig(
        vocab_size=48, d_model=32, max_position_embeddings=32, use_cache=False, **sides
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    return model, {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}


def experts(implementation):
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    )
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    model.set_experts_implementation(implementation)
    return model, {"input_ids": IDS}


@pytest.fixture
def no_weights_are_read(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the weights were measured")

    monkeypatch.setattr(uniform, "measure_spectra", refuse)


def loaded_alike(model, plan, inputs, folder):
    """Prune, save, load by the stock class, and compare."""
    thin = prune_channels(model, plan, example=inputs)
    save_pretrained(thin, folder, inputs)
    again = type(model).from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, thin(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in again.parameters()) == plan.cost_after.params
    return again


def test_a_scale_that_the_class_computes_from_a_width_keeps_that_width(tmp_path):
    """Gemma 2 multiplies by the root of its width, which is a buffer that no file of weights holds."""
    model, inputs = gemma2()
    plan = plan_uniform(model, inputs, params=0.7)
    widths = plan.widths()
    assert widths["model.embed_tokens[residual]"] == 32
    assert widths["model.layers.0.mlp.gate_proj"] == widths["model.layers.1.mlp.gate_proj"] < 64
    again = loaded_alike(model, plan, inputs, tmp_path / "thin")
    assert again.config.hidden_size == 32


def test_a_budget_below_what_the_class_can_hold_says_what_stays_and_why(no_weights_are_read):
    model, inputs = gemma2()
    with pytest.raises(SlimfastError) as caught:
        plan_uniform(model, inputs, params=0.2)
    said = str(caught.value)
    assert "\n" not in said
    assert "model.embed_tokens[residual] stay whole: with hidden_size=16" in said
    assert "computes other values of model.embed_tokens.embed_scale, which no file of weights holds" in said


def test_a_scale_that_is_a_plain_number_keeps_the_width_too(no_weights_are_read):
    """BART can multiply its embeddings by a number that the class computes from their width."""
    torch.manual_seed(1)
    config = transformers.BartConfig(
        vocab_size=48, d_model=32, max_position_embeddings=32, use_cache=False, scale_embedding=True,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    with pytest.raises(
        SlimfastError, match=r"computes something else: other of aten\.mul at model\.\w+\.embed"
    ):
        plan_uniform(model, inputs, params=0.2, outputs="logits")


def test_the_interface_decides_whether_an_encoder_narrows(tmp_path):
    model, inputs = bart()
    with pytest.raises(SlimfastError, match=r"stay whole: network output .* what may help: outputs="):
        plan_uniform(model, inputs, params=0.4)
    plan = plan_uniform(model, inputs, params=0.4, outputs="logits")
    assert plan.outputs == ("logits",)
    again = loaded_alike(model, plan, inputs, tmp_path / "thin")
    assert again.config.d_model < 32


def test_the_class_is_built_a_few_times_only(monkeypatch):
    """Sets of changes that cannot make the shapes are told by what each change does alone."""
    built = []

    def counting(model, config):
        built.append(config)
        return original(model, config)

    original = stock.built_without_data
    monkeypatch.setattr(stock, "built_without_data", counting)
    monkeypatch.setattr("slimfast.huggingface.config_search.built_without_data", counting)
    model, inputs = bart()
    plan_uniform(model, inputs, params=0.8)
    # 4,684 when every set was built
    assert len(built) < 300


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_keep_the_multiples_that_their_kernel_wants(implementation, tmp_path):
    """Saved, they run the grouped product, whichever the caller has chosen here."""
    model, inputs = experts(implementation)
    plan = plan_uniform(model, inputs, params=0.6)
    again = loaded_alike(model, plan, inputs, tmp_path / "thin")
    assert again.config._experts_implementation == "grouped_mm"
    assert again.config.hidden_size % 4 == 0
    assert again.config.moe_intermediate_size % 4 == 0
    assert again.config.moe_intermediate_size < 32
    halves = experts("batched_mm")[0].to(torch.bfloat16)
    assert stock.multiple_for_experts(halves) == 8
    assert stock.multiple_for_experts(gemma2()[0]) == 1


def test_examples_of_other_calls_are_traced_and_compared_too():
    model, inputs = bart()
    other = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3], "attention_mask": torch.ones_like(IDS)}
    plan = plan_uniform(model, inputs, params=0.8, also=[other])
    assert [sorted(call.kwargs) for call in plan.also] == [sorted(other)]


def test_what_the_class_has_no_attribute_for_is_said_before_any_work(no_weights_are_read):
    model, inputs = gemma2()
    graph = trace_channels(model, inputs, exclude=["head_dim"])
    assert {group.n for group in graph} >= {32, 64}
    model.config.__class__ = type("Rigid", (type(model.config),), {"validate": staticmethod(_refuse)})
    with pytest.raises(SlimfastError, match="no attribute of Rigid narrows the layers of Gemma2ForCausalLM"):
        plan_uniform(model, inputs, params=0.5)


def _refuse():
    raise ValueError("no other sizes")


def test_building_with_buffers_makes_no_weights_and_leaves_the_random_numbers_alone():
    model, _ = gemma2()
    before = torch.random.get_rng_state()
    built = stock.built_with_buffers(model, model.config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert built.model.embed_tokens.weight.is_meta
    assert float(built.model.embed_tokens.embed_scale) == pytest.approx(32**0.5)
    assert torch.empty(1).device.type == "cpu"


def test_weights_that_a_class_fills_with_zeros_take_no_memory_either(monkeypatch):
    class Filled(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.experts = nn.Parameter(torch.zeros(8, 8))
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.full((2,), 3.0), persistent=False)

    monkeypatch.setattr(stock, "_LARGE", 10)
    built = stock.built_with_buffers(Filled(None), None)
    assert [tensor.is_meta for tensor in (built.experts, built.scale, built.table)] == [True, False, False]
    assert stock.unsaved_buffers(built).keys() == {"table"}


def test_each_glob_has_a_multiple_of_its_own(tmp_path):
    model, inputs = bart()
    graph = trace_channels(model, inputs, exclude=["head_dim"], outputs="logits")
    hidden = {group.name for group in graph if group.name.endswith("fc1")}
    multiples = {"*fc1": 12, "residual": 16}
    narrowed = set()
    for budget in (0.9, 0.7, 0.5):
        plan = plan_uniform(model, inputs, params=budget, outputs="logits", multiple_of=multiples)
        assert plan.multiple_of == multiples
        assert all(group.width % 12 == 0 for group in plan.groups if group.name in hidden)
        assert all(group.width % 16 == 0 for group in plan.groups if group.kind == "residual")
        narrowed |= {group.name for group in plan.groups if group.width < group.n}
    assert narrowed & hidden
    loaded_alike(model, plan, inputs, tmp_path / "thin")
    with pytest.raises(ValueError, match="plan_uniform: multiple_of: no group matches 'fc7'"):
        plan_uniform(model, inputs, params=0.6, outputs="logits", multiple_of={"fc7": 8})


@pytest.mark.parametrize("place", ["configuration", "class"])
@pytest.mark.parametrize(
    ("raised", "taken"),
    [(ValueError("sizes"), True), (ZeroDivisionError(), True), (OSError("no disk"), False)],
)
def test_only_a_refusal_of_sizes_is_taken_for_one(place, raised, taken):
    class Config:
        width = 8

        def validate(self):
            if place == "configuration":
                raise raised

    class Network(nn.Module):
        def __init__(self, config):
            super().__init__()
            if place == "class":
                raise raised

    def build():
        model = Network.__new__(Network)
        return stock.built_without_data(model, stock.changed_config(Config(), {("width",): 4}))

    if taken:
        assert build() is None
    else:
        with pytest.raises(
            SlimfastError, match=r"(Config cannot be changed|Network cannot be built .*): no disk"
        ):
            build()
