"""Spectra of modules, mappings and files against numpy's float64 LAPACK; saved, read back or refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.channel_graphs import chain, chain_weights
from support.spectra_cases import lapack, spectrum
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.spectra import eigenvalues, load_spectra, measure_spectra, save_spectra

# Sources without a graph


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 1), nn.Flatten(), nn.Linear(24, 5)
    )


def test_every_matrix_of_a_module_against_lapack(model: nn.Module) -> None:
    found = measure_spectra(model, dtype=torch.float64)
    assert list(found) == ["0.weight", "2.weight", "4.weight"]
    for name, s in found.items():
        x = model.get_parameter(name).detach().flatten(1).double().numpy()
        expected = lapack(x)
        assert (s.name, s.n, s.d, s.dtype) == (name, *x.shape, "float64")
        np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-10, atol=1e-13 * expected[0])
        assert s.trace == pytest.approx(expected.sum())


def test_float32_is_the_default_and_within_its_error(model: nn.Module) -> None:
    exact = measure_spectra(model, dtype=torch.float64)
    for name, s in measure_spectra(model).items():
        assert s.dtype == "float32"
        assert 1e-8 < s.error < 1e-4
        worst = np.abs(s.explained_variance_ratio() - exact[name].explained_variance_ratio()).max()
        assert 0 < worst < s.error


def test_float64_weights_are_measured_in_float64() -> None:
    (s,) = measure_spectra({"a": torch.randn(4, 6, dtype=torch.float64)}).values()
    assert (s.dtype, s.error) == ("float64", 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 20).to(dtype)
    (s,) = measure_spectra({"a": weight}).values()
    expected = lapack(weight.double().numpy())
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-5)


def test_module_mapping_file_and_shards_give_the_same(model: nn.Module, tmp_path: Path) -> None:
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "model.pth")
    index = tmp_path / "sharded.safetensors.index.json"
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"shard-{i}.safetensors"
        save_file({name: tensor}, tmp_path / weight_map[name])
    index.write_text(json.dumps({"weight_map": weight_map}))
    expected = measure_spectra(model)
    for source in (tensors, tmp_path / "model.safetensors", str(tmp_path / "model.pth"), index):
        found = measure_spectra(source)
        assert list(found) == list(expected)
        for name, s in found.items():
            assert s.eigenvalues.tolist() == expected[name].eigenvalues.tolist()


def test_a_tied_parameter_is_one_layer() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
    model["b"].weight = model["a"].weight
    assert list(measure_spectra(model)) == ["a.weight"]


def test_small_batches_change_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = chain([9, 8, 7, 2], inputs=40), chain_weights([9, 8, 7, 2], inputs=40)
    expected = [measure_spectra(model), measure_spectra(weights, graph, scaling="unit")]
    monkeypatch.setattr(eigenvalues, "BATCH_BYTES", 100)
    found = [measure_spectra(model), measure_spectra(weights, graph, scaling="unit")]
    for before, after in zip(expected, found, strict=True):
        assert list(before) == list(after)
        for name in before:
            np.testing.assert_allclose(
                before[name].eigenvalues, after[name].eigenvalues, rtol=1e-6, atol=1e-9
            )


def test_progress_counts_every_layer_once(model: nn.Module) -> None:
    seen: list[tuple[int, int]] = []
    measure_spectra(model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# Files


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    save_spectra(measure_spectra(model, scaling="unit"), tmp_path / "spectra.safetensors")
    return tmp_path / "spectra.safetensors"


def test_saved_spectra_come_back_bit_for_bit(model: nn.Module, saved: Path) -> None:
    expected = measure_spectra(model, scaling="unit")
    found = load_spectra(saved)
    assert set(found) == set(expected)
    for name, s in found.items():
        for field in dataclasses.fields(s):
            assert np.array_equal(getattr(s, field.name), getattr(expected[name], field.name))
    assert [p.name for p in saved.parent.iterdir()] == ["spectra.safetensors"]


def without_digest(path: Path) -> bytes:
    """The content of the file without the digest that a change of any byte would break first."""
    with safe_open(path, framework="np") as file:
        document = file.metadata()["slimfast"]
    save_file(load_file(path), path, metadata={"slimfast": document})
    return path.read_bytes()


def rewritten(path: Path, change: str, by: str) -> Path:
    """The file with a text of its metadata replaced by one of the same length."""
    content = without_digest(path)
    assert change.encode() in content
    assert len(change) == len(by)
    path.write_bytes(content.replace(change.encode(), by.encode()))
    return path


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ('\\"schema\\": 1', '\\"schema\\": 2', "expected schema 1 of slimfast.spectra, got 2"),
        ("slimfast.spectra", "slimfast.manifes", "expected a document of kind 'slimfast.spectra'"),
        ('\\"n\\": 16', '\\"n\\": 17', "expected 17 float64 eigenvalues for 17 units"),
        ('\\"n\\": 16', '\\"n\\": -6', "expected an integer in 1.."),
        ("float32", "float16", "dtype: expected one of float32, float64, got 'float16'"),
        ('slimfast"', 'slimfasT"', "expected a file of spectra, got other tensors"),
        ('\\"name\\": \\"0.weight', '\\"name\\": \\"9.weight', "no eigenvalues of '9.weight'"),
        ('\\"trace\\"', '\\"trac3\\"', "field 'trace' is missing"),
    ],
)
def test_a_file_with_wrong_fields_is_refused(saved: Path, change: str, by: str, message: str) -> None:
    with pytest.raises(SlimfastError, match=message) as error:
        load_spectra(rewritten(saved, change, by))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    for broken in (b"", content[: len(content) // 2], content[:-3], b"once upon a time"):
        saved.write_bytes(broken)
        with pytest.raises(SlimfastError, match=rf"cannot read {saved}") as error:
            load_spectra(saved)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(SlimfastError, match=f"cannot read {path}"):
            load_spectra(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "descending order"),
        ([1.0, -1.0], "eigenvalues >= 0"),
        ([1.0, math.nan], "finite eigenvalues, got a sum of nan"),
        ([math.inf, 1.0], "finite eigenvalues, got a sum of inf"),
        ([1e308, 1e308], "finite eigenvalues, got a sum of inf"),
        ([1.0], r"expected 2 float64 eigenvalues for 2 units over 2 positions, got float64 of shape \(1,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_eigenvalues_that_no_measurement_gives_are_refused(
    values: list[float], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spectra.safetensors"
    save_spectra({"layer": spectrum([1.0, 1.0])}, path)
    content = without_digest(path)
    start = len(content) - 16
    path.write_bytes(content[:start] + np.array(values).tobytes().ljust(16, b"\0"))
    if len(values) == 2:
        with pytest.raises(SlimfastError, match=rf"{message}.*\(layer\)"):
            load_spectra(path)
    with pytest.raises(SlimfastError, match=rf"{message}.*\(layer\)"):
        dataclasses.replace(spectrum([1.0, 1.0]), eigenvalues=np.array(values))


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SlimfastError, match="cannot write"):
        save_spectra({"layer": spectrum([1.0])}, tmp_path / "missing" / "spectra.safetensors")


def test_a_fault_inside_is_not_blamed_on_the_weights(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(eigenvalues.ops, "grouped_spectra", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        measure_spectra(model)


def test_weights_of_a_dtype_without_spectra_are_named() -> None:
    wrong = {"w": torch.randn(4, 6).to(torch.float8_e4m3fn)}
    with pytest.raises(SlimfastError, match=r"^weights: w: expected float32, .*got torch\.float8_e4m3fn$"):
        measure_spectra(wrong)
