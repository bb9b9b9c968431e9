"""Documents of strangers: plans, manifests and metadata; one line names the file and the value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.hostile_cases import refused
from torch import nn

from slimfast import (
    Plan,
    Spectrum,
    calibrate,
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
from slimfast.cli import main
from slimfast.pruning.manifests import Manifest
from slimfast.storage.documents import DEEPEST, parse_object


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
        ('"kind"', '"more\\n": 1, "kind"', r"unknown field 'more\n'"),
        ('"schema": ?\\d', '"schema": 1, "more": ' + nested(DEEPEST), f"at most {DEEPEST} levels"),
        ('"schema": ?\\d', '"schema": 1, "more": ' + nested(100_000), "not valid JSON"),
        ('"kind"', '"' + "x" * 10**6 + '": 1, "kind"', "xxx..."),
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
        ("calibration", ("readings", 0, "weight"), "none", "no tensor 'norms:none'"),
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
        metadata = {"slimfast": file.metadata()["slimfast"]}
    path = tmp_path / "spectra.safetensors"
    save_file({"a": values}, path, metadata=metadata)
    assert message in refused(load_spectra, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool])
def test_moments_of_a_stranger(dtype: torch.dtype, documents: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {"slimfast": file.metadata()["slimfast"]}
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
