"""Files of strangers: whatever is in them, one line of SlimfastError that names the file and the value."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from slimfast import (
    Plan,
    SlimfastError,
    Spectrum,
    calibrate,
    distill,
    load,
    load_calibration,
    load_spectra,
    manifest,
    measure_spectra,
    prune_channels,
    save,
    save_calibration,
    save_spectra,
    select,
    slim,
    trace_channels,
)
from slimfast import plan as make_plan
from slimfast._json import DEEPEST, parse_object
from slimfast.cli import main
from slimfast.distillation.resume import FILE
from slimfast.manifests import Manifest
from slimfast.weights import open_weights, read_tensors


def refused(read: Callable[..., Any], *arguments: Any, names: str | None = None) -> str:
    """The one line that ``read`` must refuse its arguments with; it names the file."""
    with pytest.raises(SlimfastError) as error:
        read(*arguments)
    line = str(error.value)
    assert line.isprintable()
    assert (names or str(arguments[0])) in line
    return line


def header(tensors: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    """A safetensors file with this header, sound or not."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[Any], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (b"PK\3\4", "header too small"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (struct.pack("<Q", 200) + b"{}", "header"),
        (pickle.dumps({"a": [1.0] * 100}), "header"),
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
        (header({"a": tensor([2, 2], 16)}, bytes(15)), "header"),
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


def test_tables_of_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], documents: Any) -> None:
    path = tmp_path / "model.safetensors"
    names = ["a[/b]", "[bold]c", "d\x1b[2J", "e\nslimfast: all is well"]
    save_file({name: torch.randn(3, 4) for name in names}, path)
    assert main(["spectra", str(path)]) == 0
    printed = capsys.readouterr().out
    for name in ("a[/b]", "[bold]c", r"d\x1b[2J", r"e\nslimfast: all is well"):
        assert name in printed
    text, read = documents["plan"]
    lines = str(read(change(text, ("groups", 0, "name"), names[3])))
    assert r"e\nslimfast: all is well" in lines


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
    monkeypatch.setattr("slimfast.spectra.measurement.open_weights", lambda source: weights)
    assert "(6, 4)" in refused(measure_spectra, index)


# Documents: plans, manifests and the metadata of spectra


@pytest.fixture
def documents(model: nn.Module, tmp_path: Path) -> dict[str, tuple[str, Callable[[str], Any]]]:
    """Kind -> (a sound document, what reads another one in its place from a file named ``stranger...``)."""
    thin = slim(model, torch.zeros(1, 6), params=0.6)
    spectra = measure_spectra(model)
    save(thin, tmp_path / "thin.safetensors")
    save_spectra(spectra, tmp_path / "spectra.safetensors")

    def reader(source: str, read: Callable[[Path], Any]) -> Callable[[str], Any]:
        def replaced(text: str) -> Any:
            with safe_open(tmp_path / source, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, tmp_path / "stranger.safetensors", metadata={"slimfast": text})
            return read(tmp_path / "stranger.safetensors")

        return replaced

    def plan_reader(text: str) -> Plan:
        (tmp_path / "stranger.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        return Plan.load(tmp_path / "stranger.json")

    graph = trace_channels(model, torch.zeros(1, 6))
    save_calibration(calibrate(model, graph, [torch.randn(4, 6)]), tmp_path / "calibration.safetensors")
    with safe_open(tmp_path / "calibration.safetensors", framework="pt") as file:
        calibrated = file.metadata()["slimfast"]
    found = select(model, make_plan(model, torch.zeros(1, 6), params=0.6))
    with safe_open(tmp_path / "spectra.safetensors", framework="pt") as file:
        measured = file.metadata()["slimfast"]
    return {
        "plan": (found.to_json(), plan_reader),
        "manifest": (manifest(thin).to_json(), reader("thin.safetensors", lambda path: load(path, model))),
        "spectra": (measured, reader("spectra.safetensors", load_spectra)),
        "calibration": (calibrated, reader("calibration.safetensors", load_calibration)),
    }


KINDS = ("plan", "manifest", "spectra", "calibration")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": ?\\d', '"schema": 1, "schema": 1', "field 'schema' is there twice"),
        ('"schema": ?\\d', '"schema": 99', "of slimfast."),
        ('"schema": ?\\d', '"schema": NaN', "expected finite numbers, got NaN"),
        ('"schema": ?\\d', '"schema": -Infinity', "expected finite numbers, got -Infinity"),
        ('"schema": ?\\d', '"schema": 1e400', "expected finite numbers, got '1e400'"),
        ('"schema": ?\\d', '"schema": ' + "9" * 400, "expected schema"),
        ('"schema": ?\\d', '"schema": ' + "9" * 5000, "not valid JSON"),
        (
            '"schema": ?\\d',
            '"schema": 1, "more": "\\ud800"',
            "expected whole characters, got the half '\\ud800'",
        ),
        ('"schema": ?\\d', '"schema": 1, "\\udfff": 1', "whole characters, got the half '\\udfff'"),
        ('"schema": ?\\d', '"schema": 1, "more\\n": 1', r"unknown field 'more\n'"),
        ('"schema": ?\\d', '"schema": 1, "more": ' + nested(DEEPEST), f"at most {DEEPEST} levels"),
        ('"schema": ?\\d', '"schema": 1, "more": ' + nested(100_000), "not valid JSON"),
        ('"schema": ?\\d', '"schema": 1, "' + "x" * 10**6 + '": 1', "xxx..."),
        (r"\}\s*$", "", "not valid JSON"),
        (r"\}\s*$", "}}", "not valid JSON"),
        ("(?s).*", "null", "expected an object, got None"),
    ],
)
def test_no_document_gets_more_than_a_line(
    kind: str, old: str, new: str, message: str, documents: Any, tmp_path: Path
) -> None:
    text, read = documents[kind]
    read(text)
    changed = re.sub(old, lambda _: new, text, count=1)
    assert changed != text
    line = refused(read, changed, names=str(tmp_path / "stranger"))
    assert message in line
    assert len(line) < 1000


def change(text: str, path: tuple[Any, ...], value: Any) -> str:
    """The document with the value at a path replaced."""
    at = document = json.loads(text)
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("plan", ("inputs", "args", 0, "tensor", "shape"), [2**63, 6], "not the shape of a tensor"),
        ("plan", ("inputs", "args", 0, "tensor", "shape"), [True, 6], "not the shape of a tensor"),
        ("plan", ("inputs", "args", 0, "tensor", "shape"), [-1, 6], "not the shape of a tensor"),
        ("plan", ("inputs", "args", 0, "tensor", "dtype"), "nn", "not a dtype: 'nn'"),
        ("plan", ("inputs", "args", 0, "tensor", "dtype"), "__name__", "not a dtype"),
        ("plan", ("inputs", "args", 0, "tensor", "high"), 2**63, "not a range of integers"),
        ("plan", ("inputs", "args", 0, "tensor", "low"), 1, "not a range of integers"),
        ("plan", ("inputs", "args", 0), {"code": "print()"}, "cannot read 'code'"),
        ("plan", ("inputs", "args", 0), {"value": [1]}, "cannot read 'value'"),
        ("plan", ("inputs", "args"), {}, "expected a list 'args'"),
        ("plan", ("budget", "params"), 10**400, "budget: params: expected a number"),
        (
            "plan",
            ("groups", 0, "before", "macs"),
            2**63,
            "macs: expected an integer in 0..",
        ),
        ("plan", ("groups", 0, "n"), 2**63, "groups[0]: n: expected an integer"),
        ("plan", ("groups", 0, "keep"), [2**64], "keep[0]: expected an integer in 0..7"),
        ("manifest", ("kept", 0), [0, 2**63], "kept[0]: expected sorted, distinct indices"),
        ("manifest", ("kept", 0), [1, 0], "kept[0]: expected sorted, distinct indices"),
        ("manifest", ("kept", 0), [0, 0], "kept[0]: expected sorted, distinct indices"),
        ("manifest", ("kept", 0), [-1, 0], "kept[0]: expected sorted, distinct indices"),
        ("manifest", ("kept", 0), [0, 1.0], "kept[0]: expected a list of integers"),
        ("manifest", ("kept", 0), [0, 8], "expected indices below 8, got 8"),
        ("manifest", ("tensors", "0.weight", "cut"), {"2": 0}, "expected a dim of shape (8, 6), got '2'"),
        ("manifest", ("tensors", "0.weight", "cut"), {"00": 0}, "expected a dim of shape (8, 6), got '00'"),
        ("manifest", ("tensors", "0.weight", "cut"), {"9" * 5000: 0}, "expected a dim of shape (8, 6)"),
        ("manifest", ("tensors", "0.weight", "cut"), {"0": 9}, "expected an integer in 0.."),
        ("manifest", ("tensors", "0.weight", "shape"), [2**62, 2**62], "0.weight: expected shape"),
        ("manifest", ("tensors", "0.weight", "shape"), [-8, 6], "shape[0]: expected an integer"),
        ("manifest", ("patches", 0, "attribute"), "__class__.x", "expected the name of an attribute"),
        ("manifest", ("patches", 0, "attribute"), "a b", "expected the name of an attribute"),
        ("manifest", ("patches", 0, "after"), "4", "out_features of one type before and after"),
        ("manifest", ("patches", 0, "after"), None, "out_features of one type before and after"),
        ("manifest", ("patches", 0, "after"), [4], "out_features of one type before and after"),
        ("manifest", ("patches", 0, "after"), {"a": 1}, "expected plain values"),
        (
            "manifest",
            ("patches", 0, "module"),
            "nowhere",
            "expected 8, got no such module",
        ),
        ("manifest", ("widths",), {"0": [3, 4]}, "expected [wide, thin], got [3, 4]"),
        ("spectra", ("spectra", 0, "n"), 2**63, "n: expected an integer in 1.."),
        ("spectra", ("spectra", 0, "n"), 5, "expected 5 float64 eigenvalues"),
        ("spectra", ("spectra", 0, "d"), 0, "d: expected an integer in 1.."),
        ("spectra", ("spectra", 0, "trace"), 10**400, "trace: expected a finite number"),
        ("spectra", ("spectra", 0, "trace"), -1, "trace: expected a number"),
        ("spectra", ("spectra", 0, "error"), 2, "error: expected a number in 0..1"),
        ("spectra", ("spectra", 0, "name"), "2.weight", "got float64 of shape (3,) (2.weight)"),
        ("spectra", ("spectra", 0, "name"), "no\nthing", r"no eigenvalues of 'no\nthing'"),
        ("spectra", ("spectra",), [], "expected one entry for each of 2 spectra"),
        ("calibration", ("samples",), 0, "samples: expected an integer in 1.."),
        ("calibration", ("readings", 0, "count"), -1, "count: expected an integer in 1.."),
        ("calibration", ("readings", 0, "weight"), "none", "no tensor 'mean:none'"),
        ("calibration", ("inputs",), {}, "inputs: expected a list"),
        ("calibration", ("inputs", 0, "args"), [{"value": []}], "inputs[0]: InputSpec: cannot read 'value'"),
    ],
)
def test_a_wrong_value_in_a_document_is_named(
    kind: str, path: tuple[Any, ...], value: Any, message: str, documents: Any, tmp_path: Path
) -> None:
    text, read = documents[kind]
    assert message in refused(read, change(text, path, value), names=str(tmp_path / "stranger"))


@pytest.mark.parametrize("shape", [[2**40, 6], [2**62, 2**62], [2**61, 6]])
def test_inputs_that_fit_no_memory(shape: list[int], documents: Any, model: nn.Module) -> None:
    text, read = documents["plan"]
    found = read(change(text, ("inputs", "args", 0, "tensor", "shape"), shape))
    assert "the inputs that are described cannot be made" in refused(
        prune_channels, model, found, names="cannot be made"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(6), "F32 of shape [6]"),
        (torch.ones(2, 3).double(), "F64 of shape [2, 3]"),
        (torch.ones(6).to(torch.float8_e4m3fn), "F8_E4M3 of shape [6]"),
        (torch.tensor([2.0, 1, 1, 1, 1, float("nan")]).double(), "expected finite eigenvalues"),
        (torch.full((6,), 1e308, dtype=torch.float64), "expected finite eigenvalues"),
        (torch.arange(6).double(), "descending order"),
        (-torch.arange(6).double(), "descending order"),
    ],
)
def test_eigenvalues_of_a_stranger(values: torch.Tensor, message: str, tmp_path: Path) -> None:
    spectrum = Spectrum("a", 6, 9, np.ones(6), 6.0, 0.0, "float64")
    save_spectra({"a": spectrum}, tmp_path / "sound.safetensors")
    with safe_open(tmp_path / "sound.safetensors", framework="pt") as file:
        metadata = file.metadata()
    path = tmp_path / "spectra.safetensors"
    save_file({"a": values}, path, metadata=metadata)
    assert message in refused(load_spectra, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool])
def test_moments_of_a_stranger(dtype: torch.dtype, documents: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(
        {n: t.to(dtype) if n.startswith("mean") else t for n, t in tensors.items()}, path, metadata=metadata
    )
    assert "expected finite moments (2.weight)" in refused(load_calibration, path)


def test_a_calibration_of_no_tensors(documents: Any, tmp_path: Path) -> None:
    text, _ = documents["calibration"]
    path = tmp_path / "calibration.safetensors"
    save_file({}, path, metadata={"slimfast": change(text, ("readings",), [])})
    assert "no tensor 'input:0:0'" in refused(load_calibration, path)


def test_depth_is_counted_in_objects_and_lists() -> None:
    def deep(levels: int) -> str:
        return '{"a": [' * (levels // 2) + "1" + "]}" * (levels // 2)

    parse_object(deep(DEEPEST), "document")
    refused(parse_object, deep(DEEPEST + 2), "document", names="document")


def test_characters_beyond_ascii_are_welcome() -> None:
    assert parse_object('{"\\ud83d\\ude00 ж": 1}', "document").names() == ["😀 ж"]
    assert Manifest.from_json(Manifest({"ж": (1,)}).to_json()).shapes() == {"ж": (1,)}


# The state of a training


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epoch", "1", "epoch is a str"),
        ("recipe", None, "recipe is a NoneType"),
        ("student", [1], "student is a list"),
        ("losses", 1.0, "losses is a float"),
        ("losses", torch.zeros(7), "does not fit this one: RuntimeError"),
        ("optimizer", {}, "does not fit this one: KeyError"),
        ("records", [{"epoch": 1, "code": 2}], "does not fit this one: TypeError"),
        ("student", {"0.weight": torch.zeros(2, 2)}, "another student: 0.weight (2, 2), here (8, 6)"),
    ],
)
def test_a_training_that_is_not_ours(
    name: str, value: object, message: str, model: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    data = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))] * 2

    def train(resume: bool) -> None:
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        distill(student, teacher=model, train=data, epochs=1, checkpoint=tmp_path, resume=resume)

    train(False)
    train(True)
    state = torch.load(tmp_path / FILE, weights_only=True)
    torch.save({**state, name: value}, tmp_path / FILE)
    line = refused(train, True, names="student" if "another student" in message else str(tmp_path))
    assert message in line
