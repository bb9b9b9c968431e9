"""A network without some of its layers computes what the deep one does with them bypassed."""

from __future__ import annotations

import pytest
import torch
from support.depth_cases import (
    Mlps,
    PreNorm,
    ResNet,
    UNet,
    bert,
    bypassed,
    gpt2,
    llama,
    opt,
    qwen2,
    scores,
    t5,
    tokens,
)

import slimfast
from slimfast.errors import SlimfastError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [tokens(4, 10, seed, padding=3) for seed in range(4)]


def vit():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24, num_heads=3)
    return made.eval()


SIDES = {"input_ids": tokens()["input_ids"], "decoder_input_ids": tokens(seed=1)["input_ids"]}
NETWORKS = {
    "llama": (llama, tokens(padding=2), ["model.layers.0", "model.layers.3"]),
    "qwen2": (qwen2, tokens(padding=2), ["model.layers.1", "model.layers.2"]),
    "gpt2": (gpt2, tokens(padding=2), ["transformer.h.1"]),
    "opt": (opt, tokens(padding=2), ["model.decoder.layers.1"]),
    "bert": (bert, tokens(padding=2), ["encoder.layer.0", "encoder.layer.3"]),
    "t5": (t5, SIDES, ["encoder.block.1", "decoder.block.2"]),
    "vit": (vit, torch.randn(2, 3, 32, 32), ["blocks.2", "blocks.0"]),
    "resnet": (ResNet, IMAGES, ["stage1.1", "stage2.2"]),
    "mlps": (Mlps, torch.randn(3, 6), ["blocks.0", "blocks.1", "blocks.3"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_named_layers_go_and_nothing_else_changes(name):
    make, example, layers = NETWORKS[name]
    model = make().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    short = slimfast.drop_layers(model, example, layers=layers, repair=False)
    with torch.no_grad():
        got = scores(short(**example) if isinstance(example, dict) else short(example))
    torch.testing.assert_close(got, bypassed(model, layers, example), rtol=1e-5, atol=1e-5)
    gone = sum(p.numel() for layer in layers for p in model.get_submodule(layer).parameters())
    assert sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in model.parameters()) - gone
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    held = {tensor.data_ptr() for tensor in model.parameters()}
    assert held.isdisjoint(tensor.data_ptr() for tensor in short.parameters())


@pytest.mark.parametrize("make", [llama, gpt2, qwen2])
def test_text_is_written_with_a_cache_and_behind_padding(make):
    model = make(5)
    path = "transformer.h" if make is gpt2 else "model.layers"
    short = slimfast.drop_layers(model, tokens(), layers=[f"{path}.1", f"{path}.3"], repair=False)
    prompt = tokens(2, 8, padding=3)
    how = {"max_new_tokens": 6, "do_sample": False}
    cached = short.generate(**prompt, **how)
    assert torch.equal(cached, short.generate(**prompt, **how, use_cache=False))
    alone = short.generate(input_ids=prompt["input_ids"][:1, 3:], **how)
    assert torch.equal(cached[0, 8:], alone[0, 5:]), "padding on the left changes nothing"
    assert short.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 5
    numbers = [m.layer_idx for m in short.modules() if hasattr(m, "layer_idx")]
    assert sorted(set(numbers)) == [0, 1, 2]


def test_lists_with_an_item_for_each_layer_follow():
    model = qwen2()
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    short = slimfast.drop_layers(model, tokens(), layers=["model.layers.0", "model.layers.2"], repair=False)
    assert short.config.layer_types == ["full_attention", "sliding_attention"]


def test_an_encoder_and_its_decoder_are_counted_apart():
    short = slimfast.drop_layers(t5(), SIDES, layers=["decoder.block.2", "decoder.block.3"], repair=False)
    assert (short.config.num_layers, short.config.num_decoder_layers) == (3, 2)


def test_a_branch_goes_alone():
    model = llama()
    names = ["model.layers.1.mlp", "model.layers.2.self_attn"]
    short = slimfast.drop_layers(model, tokens(), layers=names, repair=False)

    def zeros(module, args, output):
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    hooks = [model.get_submodule(name).register_forward_hook(zeros) for name in names]
    with torch.no_grad():
        expected = model(**tokens(padding=2)).logits
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(short(**tokens(padding=2)).logits, expected)
    assert len(short.model.layers) == 5
    assert not list(short.model.layers[1].mlp.parameters())
    assert not list(short.model.layers[1].post_attention_layernorm.parameters()), "its norm goes too"
    how = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(short.generate(**tokens(), **how), short.generate(**tokens(), **how, use_cache=False))


def test_a_layer_whose_branches_all_go_goes_itself():
    names = ["model.layers.1.mlp", "model.layers.1.self_attn"]
    short = slimfast.drop_layers(llama(), tokens(), layers=names, repair=False)
    assert len(short.model.layers) == 4


def test_what_the_output_misses_least_goes_first():
    model = llama()
    with torch.no_grad():
        for layer in (1, 3):  # next to nothing is added by these
            model.model.layers[layer].self_attn.o_proj.weight.mul_(1e-3)
            model.model.layers[layer].mlp.down_proj.weight.mul_(1e-3)
        model.model.layers[3].mlp.down_proj.weight.mul_(1e-2)
        model.model.layers[3].self_attn.o_proj.weight.mul_(1e-2)
    for by in ("divergence", "influence"):
        short = slimfast.drop_layers(model, tokens(), calibration=BATCHES, layers=2, by=by)
        report = slimfast.depth_report(short)
        assert report.dropped == ("model.layers.3", "model.layers.1")
        assert set(report.scores) == {f"model.layers.{i}" for i in range(5)}
        assert "model.layers.3" in str(report)
    mlp = slimfast.drop_layers(model, tokens(), calibration=BATCHES, layers=1, parts="branches")
    assert slimfast.depth_report(mlp).dropped[0].startswith("model.layers.3.")


def test_padding_says_nothing():
    model = llama()
    other = [dict(batch) for batch in BATCHES]
    for batch in other:
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 5, batch["input_ids"])
    found = [
        slimfast.depth_report(slimfast.drop_layers(model, tokens(), calibration=batches, layers=1))
        for batches in (BATCHES, other)
    ]
    for name, score in found[0].scores.items():
        assert score.divergence == pytest.approx(found[1].scores[name].divergence, rel=1e-4)
        assert score.influence == pytest.approx(found[1].scores[name].influence, rel=1e-4)


@pytest.mark.parametrize("limit", ["params", "macs"])
def test_a_budget_is_met_by_as_few_layers_as_do(limit):
    model, example = llama(), tokens()
    whole = slimfast.count_module(model, example)
    part = {"within": "model.layers.*", limit: 0.6}
    short = slimfast.drop_layers(model, example, calibration=BATCHES, repair=False, **part)
    assert len(short.model.layers) == 3, "two fifths of five equal layers"
    of_all = slimfast.drop_layers(
        model, example, calibration=BATCHES, repair=False, **{limit: getattr(whole, limit) - 1}
    )
    assert len(of_all.model.layers) == 4


def test_what_cannot_go_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"stage2\.0 cannot go: its shortcut computes"):
        slimfast.drop_layers(ResNet().eval(), IMAGES, layers=["stage2.0"], repair=False)
    with pytest.raises(ValueError, match=r"down\.0 cannot go: its output is read in several places"):
        slimfast.drop_layers(UNet().eval(), torch.randn(2, 6), layers=["down.0"], repair=False)
    with pytest.raises(ValueError, match=r"head cannot go: it is no residual block"):
        slimfast.drop_layers(Mlps().eval(), torch.randn(2, 6), layers=["head"], repair=False)
    with pytest.raises(ValueError, match=r"a layer of blocks to stay"):
        slimfast.drop_layers(Mlps(2).eval(), torch.randn(2, 6), layers=["blocks.0", "blocks.1"], repair=False)
    flat = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)).eval()
    with pytest.raises(SlimfastError, match=r"has no layers that can go"):
        slimfast.drop_layers(flat, torch.randn(2, 6), calibration=[torch.randn(2, 6)], layers=1)
    with pytest.raises(SlimfastError, match=r"params <= .* one layer of each list stays"):
        slimfast.drop_layers(Mlps(2).eval(), torch.randn(2, 6), calibration=[torch.randn(2, 6)], params=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "expected layers, params or macs"),
        ({"layers": 0}, "a number >= 1"),
        ({"layers": 2, "params": 0.5}, "got both"),
        ({"layers": 2}, "expected calibration"),
        ({"layers": 2, "parts": "heads"}, "'layers' or 'branches'"),
        ({"layers": 2, "by": "size"}, "'divergence' or 'influence'"),
        ({"layers": 2, "samples": 0}, "samples >= 1"),
    ],
)
def test_wrong_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        slimfast.drop_layers(Mlps().eval(), torch.randn(2, 6), **options)


class Numbered(PreNorm):
    """A block that computes with its number."""

    number = 0

    def forward(self, x):
        return x + self.out(torch.relu(self.inner(self.norm(x)))) / (1 + self.number)


def test_a_layer_that_computes_with_its_number_is_refused():
    model = Mlps().eval()
    model.blocks = torch.nn.ModuleList(Numbered(6) for _ in range(4)).eval()
    for number, block in enumerate(model.blocks):
        block.number = number
    x = torch.randn(2, 6)
    with pytest.raises(SlimfastError, match=r"may depend on its number"):
        slimfast.drop_layers(model, x, layers=["blocks.1"], repair=False)
    last = slimfast.drop_layers(model, x, layers=["blocks.3"], repair=False)
    assert [block.number for block in last.blocks] == [0, 1, 2], "the numbers before the last stay"


def test_a_class_that_would_compute_with_other_numbers_is_not_written(tmp_path):
    model = gpt2(scale_attn_by_inverse_layer_idx=True)
    short = slimfast.drop_layers(model, tokens(), layers=["transformer.h.1"], repair=False)
    with pytest.raises(SlimfastError, match=r"computes something else"):
        slimfast.save_pretrained(short, tmp_path / "short", tokens())


def test_a_branch_whose_by_product_others_read_stays():
    """The attention of T5's layers hands the positions on to those of the next ones."""
    with pytest.raises(SlimfastError, match=r"or others on what it returns besides"):
        slimfast.drop_layers(t5(), SIDES, layers=["encoder.block.1.layer.0.SelfAttention"], repair=False)


def test_progress_is_told_and_stops():
    told = []
    slimfast.drop_layers(
        llama(), tokens(), calibration=BATCHES, layers=2, progress=lambda done, of: told.append((done, of))
    )
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] == told[-1][1]

    def stop(done, of):
        raise slimfast.Cancelled

    with pytest.raises(slimfast.Cancelled):
        slimfast.drop_layers(llama(), tokens(), calibration=BATCHES, layers=2, progress=stop)
