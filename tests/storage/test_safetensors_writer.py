"""Files of tensors written one by one: as the library reads them, and as announced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.storage.safetensors_writer import write_tensors
from slimfast.storage.weights import open_weights


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        f"{dtype}": torch.randn(3, 4).mul(50).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.int64, torch.bfloat16, torch.float16, torch.int8)
    } | {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3, dtype=torch.int32),
        "empty": torch.zeros(0, 4),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "strided": torch.randn(6, 4).T,
    }
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_tensors(tmp_path / "a.safetensors", shapes, tensors.items(), metadata={"b": "ü"})
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"b": "ü"}
    assert open_weights(tmp_path / "a.safetensors").infos["torch.bfloat16"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("a", torch.zeros(2))], "expected .*'b'.*, got no more tensors"),
        ([("a", torch.zeros(3))], r"expected .*\(2,\).*, got .*\(3,\)"),
        ([("b", torch.zeros(2)), ("a", torch.zeros(2))], "expected .*'a'.*, got .*'b'"),
        ([("a", torch.zeros(2).double())], "float32.*, got .*float64"),
    ],
)
def test_tensors_that_were_not_announced(
    tmp_path: Path, given: list[tuple[str, Tensor]], reason: str
) -> None:
    shapes = {"a": ((2,), torch.float32), "b": ((2,), torch.float32)}
    with pytest.raises(SlimfastError, match=reason):
        write_tensors(tmp_path / "a.safetensors", shapes, given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SlimfastError, match=r"a is of torch\.complex128"):
        write_tensors(tmp_path / "a.safetensors", {"a": ((1,), torch.complex128)}, [])
