"""Thin networks exported to .pt2 and ONNX: they run without the model's code, or nothing is kept."""

from __future__ import annotations

import os

import pytest
import torch
from support.pruning_cases import thin_of
from torch import nn

from slimfast.checkpoints.exporting import export
from slimfast.errors import SlimfastError


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
    monkeypatch.setattr("slimfast.checkpoints.exporting.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SlimfastError, match=r"needs onnx, onnxscript, onnxruntime: install the extra 'slimfast\[onnx\]'"
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


def test_export_leaves_the_example_alone(tmp_path):
    """Of a network, and so of a file, that writes into its argument."""

    class Doubling(nn.Module):
        def forward(self, x):
            return x.mul_(2) + 1

    x = torch.ones(3, 4)
    export(Doubling(), tmp_path / "thin.pt2", x)
    assert torch.equal(x, torch.ones(3, 4))


class OneAtATime(nn.Module):
    """A network that raises for every other batch."""

    def forward(self, x):
        if x.shape[0] != 1:
            raise ValueError("one picture at a time")
        return x * 2


class Four(nn.Module):
    """A network that is written for batches of four."""

    def forward(self, x):
        return x + torch.arange(4.0)[:, None]


@pytest.mark.parametrize(
    ("model", "batch", "reason"),
    [
        (OneAtATime(), 1, "one picture at a time"),
        (Four(), 4, "the network's code fixes the first dim of x at 4"),
    ],
)
def test_a_batch_that_cannot_change_is_said(tmp_path, model, batch, reason):
    with pytest.warns(UserWarning, match=rf"thin\.pt2 takes the example's batch alone: {reason}") as caught:
        export(model, tmp_path / "thin.pt2", torch.ones(batch, 3))
    assert [warning.filename for warning in caught] == [__file__]
    loaded = torch.export.load(tmp_path / "thin.pt2").module()
    assert torch.equal(loaded(torch.ones(batch, 3)), model(torch.ones(batch, 3)))
