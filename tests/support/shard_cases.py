"""A network whose weights lie in several shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.pruning_cases import ConvNet

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> Path:
    """Spread the tensors over files; the path of their index."""
    names = list(tensors)
    files = {name: f"part{i * count // len(names)}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n].contiguous() for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index


@pytest.fixture
def model() -> nn.Module:
    """The wide network."""
    torch.manual_seed(0)
    model = ConvNet()
    model.norm.running_mean.uniform_()
    return model.eval()


@pytest.fixture
def index(tmp_path: Path, model: nn.Module) -> Path:
    """The index of the wide network's shards."""
    (tmp_path / "wide").mkdir()
    return write_shards(tmp_path / "wide", model.state_dict())


@pytest.fixture
def empty() -> nn.Module:
    """The wide network without data."""
    with torch.device("meta"):
        return ConvNet().eval()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    """Check that two networks have the same tensors, bit for bit."""
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name
