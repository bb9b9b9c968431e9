"""ONNX files of networks that PyTorch's exporter does not write by itself."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.checkpoints.exporting import export
from slimfast.errors import SlimfastError

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


class Attention(nn.Module):
    """Fused attention over a tensor of any rank, as it is; ``mask``: an additive one of a parameter."""

    def __init__(self, mask: int = 0, **options) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.mask = nn.Parameter(torch.randn(mask, mask)) if mask else None
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.options)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 5, 6), {}),
        ((3, 2, 4, 5, 6), {}),
        ((3, 2, 4, 5, 6), {"scale": 1.5}),
        ((3, 2, 4, 5, 6), {"mask": 5}),
        ((3, 2, 5, 6), {"is_causal": True}),
    ],
)
def test_attention_of_every_rank_is_written(tmp_path, shape, options):
    torch.manual_seed(0)
    model, path = Attention(**options).eval(), tmp_path / "attention.onnx"
    export(model, path, torch.randn(shape))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (3, 7):
        x = torch.randn(batch, *shape[1:])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


def test_what_cannot_be_written_says_why_in_the_exporters_words(tmp_path):
    with pytest.raises(SlimfastError, match=r"Attention cannot be exported: only 4D query"):
        export(Attention(is_causal=True), tmp_path / "a.onnx", torch.randn(3, 2, 4, 5, 6))


def test_weights_beyond_a_file_of_onnx_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("slimfast.checkpoints.onnx_files._ONNX_BYTES", 100)
    with pytest.raises(SlimfastError, match=r"holds up to 2 GB, got .* GB of weights; use \.pt2"):
        export(nn.Linear(6, 18), tmp_path / "a.onnx", torch.randn(2, 6))


def test_a_missing_torchvision_is_no_news(tmp_path, monkeypatch, caplog):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torchvision" else there(name, *rest)
    )
    export(nn.Linear(6, 18), tmp_path / "a.onnx", torch.randn(2, 6))
    assert [record.getMessage() for record in caplog.records if "torchvision" in record.getMessage()] == []
