"""Layers that read the same tensor are measured once, and those that do not always, twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast


class Twins(nn.Module):
    """Two layers that read one tensor; ``change`` makes it another one between them."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.a(y)
        if self.change is not None:
            y = self.change(y)
        return out + self.b(y)


def measured(model: nn.Module, batches: list[Tensor]) -> Any:
    graph = slimfast.trace_channels(model, batches[0][:2])
    return slimfast.calibrate(model, graph, batches, dtype=torch.float64).readings


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 4, generator=generator) + place for place, count in enumerate((5, 3, 8))]


def test_one_moment_for_all_that_read_the_same_tensor() -> None:
    torch.manual_seed(0)
    found = measured(Twins().eval(), batches())
    assert found["a.weight"].covariance is found["b.weight"].covariance
    assert found["a.weight"].mean is found["b.weight"].mean


def only_from_the_second_on(y: Tensor) -> Tensor:
    # Not what the rows of the first batch are like.
    return y if y.is_meta or len(y) != 3 else y * 2.0


@pytest.mark.parametrize("change", [lambda y: y + 1.0, lambda y: y.mul_(2.0), only_from_the_second_on])
def test_what_is_changed_between_is_measured_apart(change: Any) -> None:
    torch.manual_seed(0)
    model = Twins(change).eval()
    found = measured(model, batches())
    with torch.no_grad():
        before = [model.first(x) for x in batches()]
        after = [change(y.clone()) for y in before]
    for name, seen in (("a.weight", before), ("b.weight", after)):
        columns = torch.cat(seen).T.double()
        assert found[name].count == columns.shape[1]
        assert torch.allclose(found[name].mean, columns.mean(1), atol=1e-6)
        assert torch.allclose(found[name].covariance, torch.cov(columns), atol=1e-5)


def test_one_moment_in_a_file_too(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Twins().eval()
    graph = slimfast.trace_channels(model, batches()[0][:2])
    found = slimfast.calibrate(model, graph, batches())
    slimfast.save_calibration(found, tmp_path / "c.safetensors")
    back = slimfast.load_calibration(tmp_path / "c.safetensors")
    assert back.readings["a.weight"].covariance is back.readings["b.weight"].covariance
    assert torch.equal(back.readings["b.weight"].covariance, found.readings["b.weight"].covariance)
    assert torch.equal(back.readings["b.weight"].norms, found.readings["b.weight"].norms)
    assert (back.bytes_held, back.bytes_made) == (found.bytes_held, found.bytes_made)
