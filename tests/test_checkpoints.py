"""Thin networks in files: the same network comes back, and what does not match is named."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import CASES, ConvNet, Transformer, build, random_plan
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from slimfast.checkpoints import export, load, save
from slimfast.errors import SlimfastError
from slimfast.graph.copies import named_tensors
from slimfast.manifests import Manifest, attach, compose, manifest
from slimfast.pruning import prune_channels


def thin_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    model, x = build(name)
    return prune_channels(model, random_plan(model, x), verify=False), x


def fresh(name: str) -> nn.Module:
    """A wide network of other weights."""
    torch.manual_seed(99)
    return CASES[name][0]()


def header(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["slimfast"])


def rewrite(path: Path, change) -> None:
    """Apply ``change`` to the manifest and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["slimfast"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(document, tensors)
    save_file(tensors, path, metadata={"slimfast": json.dumps(document)})


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
        "import sys, torch, slimfast; sys.path.insert(0, sys.argv[1]); from pruning_cases import Transformer;"
        "thin = slimfast.load('thin.safetensors', Transformer()).eval();"
        "torch.save(thin(torch.load('x.pt')).detach(), 'y.pt')"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], cwd=tmp_path, check=True, env=env
    )
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


def test_models_that_do_not_match_are_refused_by_name(tmp_path):
    thin, _ = thin_of("transformer")
    path = tmp_path / "thin.safetensors"
    save(thin, path)

    def refused(model: nn.Module, message: str) -> None:
        with pytest.raises(SlimfastError, match=message) as caught:
            load(path, model)
        assert "\n" not in str(caught.value)
        assert "thin.safetensors" in str(caught.value)

    refused(ConvNet(), r"ConvNet: position: expected shape \(1, 6, 16\), got no such tensor")
    refused(Transformer(dim=20), r"position: expected shape \(1, 6, 16\), got \(1, 6, 20\)")
    refused(Transformer(heads=2), "attention: head_dim: expected 4, got 8")
    refused(thin, "expected a fresh, wide model, got one that is already thin")
    larger = Transformer()
    larger.extra = nn.Linear(1, 1)
    refused(larger, r"extra\.weight: expected no such tensor, got shape \(1, 1\)")


def test_files_that_are_no_thin_networks_are_refused(tmp_path):
    thin, _ = thin_of("conv")
    good = tmp_path / "good.safetensors"
    save(thin, good)
    path = tmp_path / "bad.safetensors"

    def refused(message: str) -> None:
        with pytest.raises(SlimfastError, match=message) as caught:
            load(path, ConvNet())
        assert "\n" not in str(caught.value)
        assert "bad.safetensors" in str(caught.value)

    refused("cannot read .*bad.safetensors")
    for size in (0, 7, 100, good.stat().st_size - 1):
        path.write_bytes(good.read_bytes()[:size])
        refused("cannot read .*bad.safetensors: ")
    path.write_bytes(b"\x80\x04" + bytes(100))
    refused("cannot read")
    save_file({"stem.weight": torch.zeros(1)}, path)
    refused("not written by slimfast")
    save_file({"stem.weight": torch.zeros(1)}, path, metadata={"slimfast": "{"})
    refused("manifest: not valid JSON")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(schema=2), r"expected schema 1 of slimfast\.thin, got 2"),
        (lambda d, t: d.update(more=1), "unknown field 'more'"),
        (lambda d, t: d.pop("kept"), "field 'kept' is missing"),
        (lambda d, t: d["kept"].__setitem__(0, [0, 99]), r"expected indices below \d+, got 99"),
        (lambda d, t: d["kept"].__setitem__(0, [1, 1]), r"kept\[0\]: expected sorted, distinct indices"),
        (lambda d, t: d["kept"].__setitem__(0, [True]), r"kept\[0\]: expected a list of integers"),
        (lambda d, t: d.update(kept=7), "kept: expected a list, got 7"),
        (lambda d, t: d["tensors"]["stem.weight"]["cut"].update({"9": 0}), "expected a dim of shape"),
        (lambda d, t: d["tensors"]["stem.weight"]["cut"].update({"0": 99}), r"expected an integer in 0\.\."),
        (lambda d, t: d["widths"].update(expand=[3]), r"expand: expected \[wide, thin\], got \[3\]"),
        (lambda d, t: d["patches"][0].update(before={}), "expected plain values"),
        (lambda d, t: d["patches"][0].update(module="no.such"), "expected .*, got no such module"),
        (lambda d, t: d["patches"][0].update(before=77), "expected 77, got"),
        (
            lambda d, t: d["patches"].append(d["patches"][0]),
            "expected one of each attribute, got two",
        ),
        (lambda d, t: t.pop("stem.bias"), r"stem\.bias: expected shape \(\d+,\), got no such tensor"),
        (lambda d, t: t.update(extra=torch.zeros(2)), r"extra: expected no such tensor, got shape \(2,\)"),
        (
            lambda d, t: t.update({"stem.bias": torch.zeros(99)}),
            r"stem\.bias: expected shape .*, got \(99,\)",
        ),
    ],
)
def test_every_field_of_a_strangers_file_is_checked(tmp_path, change, message):
    thin, _ = thin_of("conv")
    path = tmp_path / "thin.safetensors"
    save(thin, path)
    rewrite(path, change)
    with pytest.raises(SlimfastError, match=message) as caught:
        load(path, ConvNet())
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 11, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    thin, _ = thin_of("transformer")
    path = tmp_path / "thin.safetensors"
    path.write_text("old")
    with pytest.raises(SlimfastError, match=r"^cannot write .*thin\.safetensors: .+"):
        save(thin, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["thin.safetensors"]


def test_a_folder_that_is_not_there(tmp_path):
    thin, x = thin_of("conv")
    with pytest.raises(SlimfastError, match=r"cannot write .*nowhere does not exist"):
        save(thin, tmp_path / "nowhere" / "thin.safetensors")
    with pytest.raises(SlimfastError, match=r"cannot write .*nowhere does not exist"):
        export(thin, tmp_path / "nowhere" / "thin.pt2", x)


def test_what_cannot_be_stored_is_refused_by_name(tmp_path):
    thin, _ = thin_of("conv")
    with pytest.raises(SlimfastError, match=r"is a meta tensor"):
        save(thin.to("meta"), tmp_path / "a.safetensors")
    thin, _ = thin_of("conv")
    thin.stem.weight.data = torch.zeros(99, 3, 3, 3)
    with pytest.raises(SlimfastError, match=r"ConvNet: stem\.weight: expected shape .* got \(99, 3, 3, 3\)"):
        save(thin, tmp_path / "a.safetensors")

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(SlimfastError, match="0 has extra state"):
        save(nn.Sequential(Extra(2, 2)), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


@st.composite
def manifests(draw, shapes: dict[str, tuple[int, ...]]) -> Manifest:
    """A manifest of tensors of these shapes with any indices kept."""
    keeps: dict[str, dict[int, np.ndarray]] = {}
    for name, shape in shapes.items():
        for dim, length in enumerate(shape):
            kept = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1)))
            if len(kept) < length:
                keeps.setdefault(name, {})[dim] = np.array(kept)
    return Manifest(shapes, keeps)


@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_manifests_survive_json_and_compose_like_indexing(data):
    shapes = {"a": (5, 7), "b": (4,)}
    first = data.draw(manifests(shapes))
    second = data.draw(manifests(first.shapes()))
    both = compose(first, second)
    again = Manifest.from_json(both.to_json())
    assert again.to_json() == both.to_json()
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


@pytest.mark.parametrize("name", ["conv", "option-a"])
def test_export_to_pt2_runs_without_the_models_code_on_other_batches(tmp_path, name):
    thin, x = thin_of(name)
    path = tmp_path / "thin.pt2"
    thin.train()
    export(thin, path, x[:1])
    assert thin.training
    loaded = torch.export.load(path).module()
    thin.eval()
    for batch in (x[:1], x, torch.randn(5, *x.shape[1:])):
        assert torch.allclose(loaded(batch), thin(batch), atol=1e-5)
    assert os.listdir(tmp_path) == ["thin.pt2"]


def test_export_to_onnx_runs_on_other_batches(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    thin, x = thin_of("conv")
    path = tmp_path / "thin.onnx"
    export(thin, path, x)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    for batch in (x, torch.randn(3, *x.shape[1:])):
        (found,) = session.run(None, {entry.name: batch.numpy()})
        assert torch.allclose(torch.from_numpy(found), thin(batch), atol=1e-5)
    assert os.listdir(tmp_path) == ["thin.onnx"]


def test_export_of_integer_inputs_and_tied_weights(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    thin, ids = thin_of("transformer")
    export(thin, tmp_path / "thin.onnx", {"ids": ids})
    export(thin, tmp_path / "thin.pt2", (ids,))
    assert sorted(os.listdir(tmp_path)) == ["thin.onnx", "thin.pt2"]


def test_export_says_what_it_cannot_do(tmp_path, monkeypatch):
    thin, x = thin_of("conv")
    with pytest.raises(ValueError, match=r"ending in \.onnx or \.pt2, got .*thin\.tflite"):
        export(thin, tmp_path / "thin.tflite", x)

    class Dynamic(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(SlimfastError, match="export: Dynamic cannot be exported: "):
        export(Dynamic(), tmp_path / "a.pt2", x)
    monkeypatch.setattr("slimfast.checkpoints.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SlimfastError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'slimfast\[onnx\]'"
    ):
        export(thin, tmp_path / "a.onnx", x)
    assert os.listdir(tmp_path) == []


def test_an_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    thin, x = thin_of("conv")
    original = torch.export.load

    def load_wrong(path):
        program = original(path)
        program.state_dict["classifier.bias"].data += 1.0
        return program

    monkeypatch.setattr("torch.export.load", load_wrong)
    with pytest.raises(SlimfastError, match="export: the file computes something else: off by"):
        export(thin, tmp_path / "thin.pt2", x)
    assert os.listdir(tmp_path) == []
