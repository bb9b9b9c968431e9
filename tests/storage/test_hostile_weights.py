"""Weights and shards of strangers: whatever is in them, one line of SlimfastError that names the file."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hostile_cases import refused
from torch import nn

from slimfast import Plan, load, load_calibration, load_spectra, measure_spectra
from slimfast.storage.documents import DEEPEST
from slimfast.storage.weights import open_weights, read_tensors


def header(tensors: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    """A safetensors file with this header, sound or not."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[Any], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\3\4", "the end of its archive is missing"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (struct.pack("<Q", 200) + b"{}", "header"),
        (pickle.dumps({"a": [1.0] * 100}), ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (header(b"\xff\xfe{}"), "header"),
        (header(b"[" * 100_000), "header"),
        (header(b'{"a":' * 100_000), "recursion"),
        (header(b'{"\\ud800":' + json.dumps(tensor([1], 4)).encode() + b"}", bytes(4)), "escape"),
        (header({"a": tensor([2**62, 4], 0)}), "overflow"),
        (header({"a": tensor([2**32, 2**32], 0)}), "overflow"),
        (header({"a": tensor([2**70], 4)}, bytes(4)), "header"),
        (header({"a": tensor([-1], 4)}, bytes(4)), "-1"),
        (header({"a": tensor([1.5], 6)}, bytes(6)), "1.5"),
        (header({"a": tensor([2, 2], 12)}, bytes(12)), "invalid shape"),
        (header({"a": tensor([2, 2], 16)}, bytes(15)), "the file is truncated: expected 89 bytes, got 88"),
        (header({"a": tensor([2, 2], 16)}, bytes(17)), "header"),
        (header({"a": tensor([1], 4, "F33")}, bytes(4)), "F33"),
        (header({"a": tensor([1], 4), "b": tensor([1], 4)}, bytes(4)), "offset"),
    ],
)
def test_malformed_safetensors(content: bytes, message: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, measure_spectra, load_spectra):
        assert message in refused(read, path)
    assert message in refused(load, path, model)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**63, 0], [0, 3], [3, 0, 5]])
def test_tensors_without_elements_are_no_layers(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"empty": tensor(shape, 0)}))
    assert "empty" in refused(measure_spectra, path)
    assert str(shape[0]) in refused(measure_spectra, path)


def test_a_shape_that_pytorch_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"empty": tensor([2**63, 0], 0)}))
    assert "empty" in refused(read_tensors, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weight = torch.ones(3, 4, dtype=dtype)
    weight[1, 2] = value
    save_file({"bad.weight": weight}, path)
    line = refused(measure_spectra, path)
    assert "bad.weight" in line
    assert str(value) in line


def test_names_of_tensors_stay_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a\nslimfast: all is well\x1b[2J": torch.full((2, 2), float("nan"))}, path)
    assert r"a\nslimfast: all is well\x1b[2J" in refused(measure_spectra, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.index.json", ".pth", ".json"])
def test_a_pipe_is_not_waited_for(suffix: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    readers: tuple[Callable[[Path], Any], ...] = (open_weights, load_spectra, load_calibration)
    readers = (Plan.load,) if suffix == ".json" else (*readers, lambda path: load(path, model))
    for read in readers:
        assert "it is not a file" in refused(read, path)


@pytest.mark.parametrize("name", ["a\0b.safetensors", "x" * 300 + ".safetensors", "\ud800.safetensors"])
def test_names_that_no_file_can_have(name: str, model: nn.Module, tmp_path: Path) -> None:
    for read in (open_weights, load_spectra, load_calibration, Plan.load, lambda path: load(path, model)):
        assert "no such file" in refused(read, tmp_path / name, names=str(tmp_path))


class Payload:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_runs_nothing(suffix: str, zipped: bool, plain: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / f"model{suffix}", tmp_path / "trace"
    content = {"weight": torch.ones(2, 2), "x": Payload(trace)}
    if plain:
        path.write_bytes(pickle.dumps({"x": Payload(trace)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(open_weights, path)
    assert not trace.exists()


# Indices and their shards


def shards(folder: Path, weight_map: dict[str, str] | str, **files: dict[str, torch.Tensor]) -> Path:
    """An index with this map (or this text), and shards of these names beside it."""
    index = folder / "model.safetensors.index.json"
    index.write_text(weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map}))
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return index


ONE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x.safetensors"}, "'b' is nowhere by the index, but also in x.safetensors"),
        (
            {"a": "x.safetensors", "b": "y.safetensors"},
            "'b' is in 'y.safetensors' by the index, but",
        ),
        ({"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}, "'c' is not in y.safetensors"),
        ({"a": "x\0.safetensors"}, r"its shard 'x\x00.safetensors' is missing"),
        ({"a": "x" * 300 + ".safetensors"}, "xxx... is missing"),
        ({"a": "folder.safetensors"}, "its shard 'folder.safetensors' is missing"),
        ({"a": "pipe.safetensors"}, "its shard 'pipe.safetensors' is missing"),
        ({"a": "../x.safetensors"}, "inside its folder, got '../x.safetensors'"),
        ({"a": "y/../../x.safetensors"}, "inside its folder, got 'y/../../x.safetensors'"),
        ({"a": "/x.safetensors"}, "inside its folder, got '/x.safetensors'"),
        ({"a": r"C:\x.safetensors"}, "inside its folder"),
        ({"a": r"..\x.safetensors"}, "inside its folder"),
        ({"a": "x.pth"}, "expected .safetensors files"),
        ({"a": 3}, "weight_map: a: expected a string, got 3"),
        ('{"weight_map": {"\\ud800": "x.safetensors"}}', "whole characters, got the half '\\ud800'"),
        ('{"weight_map": {"a": NaN}}', "expected finite numbers, got NaN"),
        ('{"weight_map": ' + "[" * 200 + "]" * 200 + "}", f"at most {DEEPEST} levels"),
    ],
)
def test_an_index_that_is_not_what_its_shards_are(weight_map: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    index = shards(
        tmp_path, weight_map, x={"a": ONE, "b": ONE + 2}, y={"b": ONE + 1} if "c" not in weight_map else {}
    )
    assert message in refused(open_weights, index)


def test_a_link_is_followed_wherever_it_leads(tmp_path: Path) -> None:
    # As download caches lay them out: the one who made the folder chose where its links go, not the index.
    folder = tmp_path / "snapshot"
    folder.mkdir()
    index = shards(folder, {"a": "x.safetensors"})
    save_file({"a": ONE}, tmp_path / "blob")
    (folder / "x.safetensors").symlink_to(tmp_path / "blob")
    assert torch.equal(read_tensors(index)["a"], ONE)
    (folder / "x.safetensors").unlink()
    (folder / "x.safetensors").symlink_to(folder / "x.safetensors")
    assert "its shard 'x.safetensors' is missing" in refused(open_weights, index)


def test_a_shard_that_changes_after_it_was_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = shards(tmp_path, {"a": "x.safetensors"}, x={"a": torch.randn(4, 6)})
    weights = open_weights(index)
    save_file({"a": torch.randn(6, 4)}, tmp_path / "x.safetensors")
    monkeypatch.setattr("slimfast.spectra.effective_weights.open_weights", lambda source: weights)
    assert "(6, 4)" in refused(measure_spectra, index)
