"""Shorter networks in files: of this package, and of their stock class in another process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.depth_cases import ResNet, bert, gpt2, llama, qwen2, scores, tokens

import slimfast
from slimfast.errors import SlimfastError
from slimfast.pruning.manifests import Manifest

BATCHES = [tokens(4, 10, seed, padding=3) for seed in range(4)]


def outputs(network, call):
    with torch.no_grad():
        return scores(network(**call) if isinstance(call, dict) else network(call))


@pytest.mark.parametrize("parts", ["layers", "branches"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_a_file_and_the_deep_class_give_the_shorter_network(make, parts, tmp_path):
    model = make()
    short = slimfast.drop_layers(model, tokens(), calibration=BATCHES, layers=2, parts=parts)
    slimfast.save(short, tmp_path / "short.safetensors")
    loaded = slimfast.load(tmp_path / "short.safetensors", make())
    assert torch.equal(outputs(loaded, tokens(padding=2)), outputs(short, tokens(padding=2)))
    assert slimfast.manifest(loaded).dropped == slimfast.manifest(short).dropped
    again = slimfast.load(tmp_path / "short.safetensors", model)
    assert len(list(model.parameters())) > len(list(again.parameters())), "the deep model stays"
    with pytest.raises(SlimfastError, match="already thin"):
        slimfast.load(tmp_path / "short.safetensors", short)


def test_depth_then_width_then_depth(tmp_path):
    """Each cut is of the network that is there; the file is of all of them."""
    model, example = llama(6), tokens()
    short = slimfast.drop_layers(model, example, layers=["model.layers.1", "model.layers.4"], repair=False)
    plan = slimfast.plan(short, example, params=0.8, include=["channel"])
    thin = slimfast.prune_channels(short, plan, select="l2")
    assert slimfast.verification_report(thin).padded
    shorter = slimfast.drop_layers(
        thin, example, layers=["model.layers.1", "model.layers.3.mlp"], repair=False
    )
    names = [one.name for one in slimfast.manifest(shorter).dropped if one.fate != "input"]
    assert names == ["model.layers.1", "model.layers.4", "model.layers.2", "model.layers.5.mlp"]
    slimfast.save(shorter, tmp_path / "a.safetensors")
    loaded = slimfast.load(tmp_path / "a.safetensors", llama(6))
    assert torch.equal(outputs(loaded, tokens(padding=2)), outputs(shorter, tokens(padding=2)))
    document = slimfast.manifest(shorter).to_json()
    assert Manifest.from_json(document).to_json() == document


def test_a_resnet_without_blocks_is_cut_and_loaded(tmp_path):
    images = torch.randn(4, 3, 8, 8)
    model = ResNet().eval()
    thin = slimfast.slim(
        slimfast.drop_layers(model, images, calibration=[images], layers=2), images, params=0.7
    )
    slimfast.save(thin, tmp_path / "a.safetensors")
    loaded = slimfast.load(tmp_path / "a.safetensors", ResNet())
    assert torch.equal(outputs(loaded.eval(), images), outputs(thin, images))


def test_another_deep_network_is_refused(tmp_path):
    short = slimfast.drop_layers(llama(5), tokens(), layers=["model.layers.4"], repair=False)
    slimfast.save(short, tmp_path / "short.safetensors")
    with pytest.raises(SlimfastError, match=r"expected a module model\.layers\.4"):
        slimfast.load(tmp_path / "short.safetensors", llama(4))
    with pytest.raises(SlimfastError, match="expected no such tensor"):
        slimfast.load(tmp_path / "short.safetensors", llama(6))


@pytest.mark.parametrize("make", [llama, qwen2, gpt2])
def test_the_stock_class_loads_it_elsewhere(make, tmp_path):
    model = make()
    path = "transformer.h" if make is gpt2 else "model.layers"
    short = slimfast.drop_layers(model, tokens(), calibration=BATCHES, layers=[f"{path}.1"])
    prompt = tokens(2, 8, padding=3)
    slimfast.save_pretrained(short, tmp_path / "short", prompt)
    torch.save((prompt, outputs(short, prompt), short.generate(**prompt, max_new_tokens=5, do_sample=False)),
               tmp_path / "expected.pt")  # fmt: skip
    program = (
        "import torch\n"
        "from slimfast.checkpoints.torchvision_ops import prepare_torchvision\n"
        "prepare_torchvision()\n"
        "import transformers\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'short')!r}).eval()\n"
        f"prompt, logits, text = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        "    torch.testing.assert_close(model(**prompt).logits, logits)\n"
        "assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False), text)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_depth_then_one_width_for_all_is_a_stock_class(tmp_path):
    short = slimfast.drop_layers(llama(), tokens(), calibration=BATCHES, layers=2)
    thin = slimfast.prune_channels(short, slimfast.plan_uniform(short, tokens(), params=0.8))
    slimfast.save_pretrained(thin, tmp_path / "thin", tokens())
    loaded = type(thin).from_pretrained(tmp_path / "thin")
    torch.testing.assert_close(outputs(loaded.eval(), tokens()), outputs(thin, tokens()))


def test_what_pairs_layers_by_name_refuses():
    short = slimfast.drop_layers(llama(), tokens(), layers=["model.layers.1"], repair=False)
    with pytest.raises(ValueError, match=r"without model\.layers\.1"):
        slimfast.aligned_hints(short, ["model.layers.2.mlp.down_proj"])
    with pytest.raises(ValueError, match=r"without model\.layers\.1"):
        slimfast.prune_checkpoint("model.safetensors", slimfast.manifest(short), "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"fate":"shorter"', "gone or input or zeros"),
        ('"fate":"gone","x":1', "x"),
    ],
)
def test_a_document_that_says_something_else_is_refused(change, said):
    short = slimfast.drop_layers(llama(), tokens(), layers=["model.layers.1"], repair=False)
    document = slimfast.manifest(short).to_json()
    with pytest.raises(SlimfastError, match=said):
        Manifest.from_json(document.replace('"fate":"gone"', change))
