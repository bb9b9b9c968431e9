"""Thin networks in files: what does not match, cannot be stored or cannot be written is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.pruning_cases import ConvNet, Transformer, thin_of
from torch import nn

from slimfast.checkpoints.exporting import export
from slimfast.checkpoints.thin_files import load, save
from slimfast.errors import SlimfastError


def rewrite(path: Path, change) -> None:
    """Apply ``change`` to the manifest and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["slimfast"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(document, tensors)
    save_file(tensors, path, metadata={"slimfast": json.dumps(document)})


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
    refused("expected a network saved by slimfast, got other tensors")
    save_file({"stem.weight": torch.zeros(1)}, path, metadata={"slimfast": "{"})
    refused("manifest: not valid JSON")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(schema=4), r"expected schema 1 to 3 of slimfast\.thin, got 4"),
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
        (
            lambda d, t: d["dropped"].append({"module": "no.such", "fate": "zeros", "outputs": 0}),
            r"expected a module no\.such, which was dropped, got none",
        ),
        (
            lambda d, t: d["dropped"].append({"module": "stem", "fate": "gone", "outputs": 0}),
            "stem: expected an element of a list of layers, got one of ConvNet",
        ),
        (
            lambda d, t: d["dropped"].append({"module": "stem", "fate": "zeros", "outputs": -1}),
            r"expected an integer in 0\.\.",
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


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    thin, _ = thin_of("transformer")
    path = tmp_path / "thin.safetensors"
    path.write_text("old")
    with pytest.raises(SlimfastError, match=r"^cannot write .*thin\.safetensors: .+"):
        save(thin, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["thin.safetensors"]


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_while_exporting_is_an_error_and_leaves_the_old_file(tmp_path):
    thin, x = thin_of("conv")
    path = tmp_path / "thin.pt2"
    path.write_text("old")
    with pytest.raises(SlimfastError, match=r"^cannot write .*thin\.pt2: .+"):
        export(thin, path, x)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["thin.pt2"]


@pytest.mark.parametrize("name", ["thin.pth", "thin.onnx", "thin", "thin.safetensors.json"])
def test_a_name_that_says_another_format_is_refused(tmp_path, name):
    thin, _ = thin_of("conv")
    with pytest.raises(ValueError, match=rf"^save: expected a path ending in \.safetensors, got .*{name}$"):
        save(thin, tmp_path / name)
    assert os.listdir(tmp_path) == []


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
