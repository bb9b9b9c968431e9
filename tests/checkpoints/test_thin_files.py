"""Thin networks in files: the same network comes back, with its manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.paths import ROOT, TESTS
from support.pruning_cases import CASES, ConvNet, Transformer, build, random_plan, thin_of
from torch import nn

from slimfast.checkpoints.thin_files import load, save
from slimfast.errors import SlimfastError
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.manifests import Manifest, attach, compose, manifest
from slimfast.pruning.prune import prune_channels


def fresh(name: str) -> nn.Module:
    """A wide network of other weights."""
    torch.manual_seed(99)
    return CASES[name][0]()


def header(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["slimfast"])


@pytest.mark.parametrize("name", CASES)
def test_the_same_network_comes_back(tmp_path, name):
    thin, x = thin_of(name)
    path = tmp_path / "thin.safetensors"
    save(thin, path)
    wide = fresh(name)
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    loaded = load(path, wide)
    assert all(torch.equal(tensor, before[key]) for key, tensor in wide.state_dict().items())
    assert {n: t.shape for n, t in named_tensors(loaded).items()} == {
        n: t.shape for n, t in named_tensors(thin).items()
    }
    assert loaded.training
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), thin(x))
    assert manifest(loaded).to_json() == manifest(thin).to_json()
    again = tmp_path / "again.safetensors"
    save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_the_same_output_in_a_new_process(tmp_path):
    thin, x = thin_of("transformer")
    save(thin, tmp_path / "thin.safetensors")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, slimfast; sys.path.insert(0, sys.argv[1]);"
        "from support.pruning_cases import Transformer;"
        "thin = slimfast.load('thin.safetensors', Transformer()).eval();"
        "torch.save(thin(torch.load('x.pt')).detach(), 'y.pt')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(TESTS)], cwd=tmp_path, check=True, env=env)
    assert torch.equal(torch.load(tmp_path / "y.pt"), thin(x).detach())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    thin, _ = thin_of("transformer")
    save(thin, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert "embed.weight" in file.keys()  # noqa: SIM118
        assert "logits.weight" not in file.keys()  # noqa: SIM118
    loaded = load(tmp_path / "a.safetensors", fresh("transformer"))
    assert loaded.logits.weight is loaded.embed.weight
    untied = Transformer()
    untied.logits = nn.Linear(16, 11, bias=False)
    with pytest.raises(SlimfastError, match=r"logits\.weight: expected no such tensor, got shape \(11, 16\)"):
        load(tmp_path / "a.safetensors", untied)


def test_dtypes_are_the_files_and_devices_the_models(tmp_path):
    thin, _ = thin_of("conv")
    thin.half()
    thin.norm.float()
    save(thin, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors", fresh("conv"))
    assert loaded.stem.weight.dtype == torch.float16
    assert loaded.norm.weight.dtype == torch.float32
    hollow = ConvNet().to("meta")
    on_cpu = load(tmp_path / "a.safetensors", hollow)
    assert all(torch.equal(a, b) for a, b in zip(on_cpu.parameters(), thin.parameters(), strict=True))
    assert all(p.is_meta for p in hollow.parameters())


def test_buffers_that_are_not_stored_are_cut_from_the_models_own(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
            self.register_buffer("shift", torch.arange(6.0)[:, None, None], persistent=False)

        def forward(self, x):
            return self.last((self.first(x) + self.shift).relu())

    model, x = Net().eval(), torch.randn(1, 3, 4, 4)
    thin = prune_channels(model, random_plan(model, x), verify=False)
    save(thin, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors", Net())
    assert torch.equal(loaded.shift, thin.shift)
    assert len(thin.shift) < 6
    hollow = Net().to("meta")
    with pytest.raises(SlimfastError, match="shift is not stored and is a meta tensor"):
        load(tmp_path / "a.safetensors", hollow)


class Remaking(nn.Module):
    """Makes a table as long as its input is, as relative positions are, and keeps it in a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x):
        if len(self.table) != x.shape[1]:
            self.table = torch.arange(float(x.shape[1]))
        return self.second(self.first(x + self.table[:, None]).relu())


def test_buffers_that_a_forward_makes_anew_are_no_difference(tmp_path):
    torch.manual_seed(0)
    model, x = Remaking(), torch.randn(2, 5, 3)
    thin = prune_channels(model, random_plan(model, x))
    expected = thin(x)
    assert thin.table.shape == (5,)
    save(thin, tmp_path / "thin.safetensors")
    used = Remaking()
    used(torch.randn(2, 7, 3))
    for fresh in (Remaking(), used):
        assert torch.equal(load(tmp_path / "thin.safetensors", fresh)(x), expected)


def test_a_network_that_was_never_pruned_can_be_saved_too(tmp_path):
    model, _ = build("conv")
    model.to(memory_format=torch.channels_last)
    save(model, tmp_path / "a.safetensors")
    assert header(tmp_path / "a.safetensors")["kept"] == []
    loaded = load(tmp_path / "a.safetensors", fresh("conv")).eval()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_network_pruned_twice_loads_in_one_step(tmp_path):
    thin, x = thin_of("option-a")
    twice = prune_channels(thin, random_plan(thin, x, seed=5, share=0.7))
    save(twice, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors", fresh("option-a")).eval()
    assert torch.equal(loaded(x), twice(x))


@st.composite
def manifests(draw, shapes: dict[str, tuple[int, ...]]) -> Manifest:
    """A manifest of tensors of these shapes with any indices kept."""
    keeps: dict[str, dict[int, np.ndarray]] = {}
    for name, shape in shapes.items():
        for dim, length in enumerate(shape):
            kept = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1)))
            if len(kept) < length:
                keeps.setdefault(name, {})[dim] = np.array(kept)
    changed = st.lists(st.sampled_from(["masks", "repair"]), min_size=1, max_size=2).map(tuple)
    moved = draw(st.dictionaries(st.sampled_from(sorted(shapes)), changed))
    return Manifest(shapes, keeps, moved=moved)


@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_manifests_survive_json_and_compose_like_indexing(data):
    shapes = {"a": (5, 7), "b": (4,)}
    first = data.draw(manifests(shapes))
    second = data.draw(manifests(first.shapes()))
    both = compose(first, second)
    again = Manifest.from_json(both.to_json())
    assert again.to_json() == both.to_json()
    for name in shapes:
        assert again.moved.get(name, ()) == first.moved.get(name, ()) + second.moved.get(name, ())
    for name, shape in shapes.items():
        tensor = np.arange(int(np.prod(shape))).reshape(shape)
        step = tensor
        for told in (first, second):
            for dim, index in told.keeps.get(name, {}).items():
                step = step.take(index, dim)
        for dim, index in again.keeps.get(name, {}).items():
            tensor = tensor.take(index, dim)
        assert np.array_equal(step, tensor)
    assert both.shapes() == second.shapes()


def test_attach_replaces_the_manifest():
    model = nn.Linear(2, 3)
    told = Manifest({"weight": (3, 2), "bias": (3,)}, widths={"x": (4, 3)})
    attach(model, told)
    assert manifest(model) is told
