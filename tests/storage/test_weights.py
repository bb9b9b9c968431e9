"""Where parameters come from, and what a file that is not what it should be gets."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.storage.weights import open_weights, read_tensors


class Unsafe:
    """Something whose unpickling would run code."""


def one_line(error: pytest.ExceptionInfo[SlimfastError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "steps": torch.tensor(7)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_module_gives_its_parameters_detached_and_no_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    weights = open_weights(model)
    assert set(weights.infos) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert weights.infos["0.weight"].shape == (3, 2, 3, 3)
    loaded = weights.load("0.weight")
    assert not loaded.requires_grad
    assert loaded.data_ptr() == model[0].weight.data_ptr()


def test_module_gives_every_name_of_a_tied_parameter() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert {"a.weight", "b.weight"} <= set(open_weights(model).infos)


def test_mapping_gives_its_tensors_and_integers_are_not_floating(tensors: dict[str, Tensor]) -> None:
    weights = open_weights({**tensors, "epoch": 3})
    assert list(weights.infos) == list(tensors)
    assert weights.infos["steps"].dtype is None
    assert weights.infos["a.weight"].dtype == torch.float32


def test_meta_tensors_have_no_values() -> None:
    with pytest.raises(SlimfastError, match=r"Linear: .*meta tensor \(weight\)"):
        open_weights(nn.Linear(2, 2, device="meta"))


def test_other_sources_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="got int"):
        open_weights(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin"])
def test_pickle_of_a_bare_state_dict(tmp_path: Path, tensors: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(OrderedDict(tensors), path)
    assert_same(read_tensors(path), tensors)


def test_pickle_of_the_old_format(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert_same(read_tensors(str(path)), tensors)


def packed_anew(path: Path, method: int) -> None:
    """The same archive with its records compressed by this method."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, record in records.items():
            archive.writestr(name, record)


@pytest.mark.parametrize("only", ["", "data/0", "data.pkl"])
def test_pickle_whose_archive_is_deflated(tmp_path: Path, only: str) -> None:
    path = tmp_path / "w.pth"
    tensors = {"a.weight": torch.arange(4096.0).reshape(64, 64) % 7, "b.weight": torch.randn(64, 64)}
    torch.save(tensors, path)
    if only:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, record in records.items():
                method = zipfile.ZIP_DEFLATED if name.endswith(only) else zipfile.ZIP_STORED
                archive.writestr(name, record, method)
    else:
        packed_anew(path, zipfile.ZIP_DEFLATED)
    assert_same(read_tensors(path), tensors)


def test_pickle_whose_archive_is_compressed_as_torch_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a.weight": torch.zeros(64, 64)}, path)
    packed_anew(path, zipfile.ZIP_BZIP2)
    with pytest.raises(SlimfastError, match=r"^cannot read .*w\.pth: ") as error:
        read_tensors(path)
    one_line(error)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema", "params_ema"])
def test_nested_state_dict_with_a_prefix(tmp_path: Path, tensors: dict[str, Tensor], key: str) -> None:
    path = tmp_path / "checkpoint.pth"
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "best": torch.tensor(0.9), key: {"state_dict": prefixed}}, path)
    assert_same(read_tensors(path), tensors)


def test_prefix_that_not_every_name_has_stays(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    mixed = {"module.x": tensors["a.weight"], "y": tensors["a.bias"]}
    save_file(mixed, path)
    assert set(read_tensors(path)) == set(mixed)


def test_safetensors_and_their_floating_types(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ]
    stored = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in dtypes} | {"int": torch.ones(2, 3).int()}
    save_file(stored, path)
    weights = open_weights(path)
    assert {name: info.dtype for name, info in weights.infos.items()} == {
        **{str(dtype): dtype for dtype in dtypes},
        "int": None,
    }
    assert {info.shape for info in weights.infos.values()} == {(2, 3)}
    assert all(torch.equal(weights.load(name).float(), tensor.float()) for name, tensor in stored.items())


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> Path:
    names = list(tensors)
    weight_map = {name: f"model-{i}.safetensors" for i, name in enumerate(names)}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_index_of_shards(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    assert_same(read_tensors(write_shards(tmp_path, tensors)), tensors)


def test_shards_are_read_one_tensor_at_a_time(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    index = write_shards(tmp_path, tensors)
    weights = open_weights(index)
    (tmp_path / "model-1.safetensors").unlink()
    assert torch.equal(weights.load("a.weight"), tensors["a.weight"])
    with pytest.raises(SlimfastError, match=r"model-1.safetensors: a.bias: No such file") as error:
        weights.load("a.bias")
    one_line(error)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "C:\\x.safetensors"]
)
def test_index_that_points_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(SlimfastError, match=r"expected \.safetensors files inside its folder") as error:
        open_weights(index)
    assert repr(file) in one_line(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected an object, got \\[\\]"),
        ("{}", "field 'weight_map' is missing"),
        ('{"weight_map": []}', "weight_map: expected an object, got \\[\\]"),
        ('{"weight_map": {"a": 3}}', "weight_map: a: expected a string, got 3"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "field 'a' is there twice"),
        ('{"weight_map": {"a": "b.pth"}}', "expected .safetensors files"),
        ('{"weight_map": {"a": "missing.safetensors"}}', "its shard 'missing.safetensors' is missing"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_malformed_index(tmp_path: Path, content: str, reason: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(SlimfastError, match=reason) as error:
        open_weights(index)
    assert str(index) in one_line(error)


def test_index_of_a_tensor_its_shard_lacks(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    index = write_shards(tmp_path, tensors)
    index.write_text(json.dumps({"weight_map": {"other": "model-0.safetensors"}}))
    with pytest.raises(SlimfastError, match=r"'a.weight' is nowhere by the index, but also in model-0"):
        open_weights(index)


def test_unknown_name_gets_the_nearest_one(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(SlimfastError, match=r"no tensor 'a.weigth' \(did you mean 'a.weight'\?\)"):
        open_weights(tensors).info("a.weigth")


@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.index.json", ".pth"])
def test_missing_file_and_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(SlimfastError, match="no such file") as error:
        open_weights(path)
    assert str(path) in one_line(error)
    path.mkdir()
    with pytest.raises(SlimfastError, match="cannot read") as error:
        open_weights(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.97])
def test_truncated_file(tmp_path: Path, tensors: dict[str, Tensor], suffix: str, left: float) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(SlimfastError, match="cannot read") as error:
        open_weights(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_foreign_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_text("once upon a time there was a file")
    with pytest.raises(SlimfastError, match="cannot read") as error:
        open_weights(path)
    assert str(path) in one_line(error)


def test_pickle_that_needs_code_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(Unsafe(), path)
    with pytest.raises(SlimfastError, match=r"needs \S*Unsafe, refused") as error:
        open_weights(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_pickle_without_tensors(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(SlimfastError, match="expected a state dict, got a"):
        open_weights(path)


def test_pickle_of_plain_python_is_no_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"a": [1.0]}, protocol=2))
    with pytest.raises(SlimfastError, match="cannot read") as error:
        open_weights(path)
    one_line(error)
