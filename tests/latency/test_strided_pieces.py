"""Latency tables of networks that PyTorch lays out by strides: channels side by side, and pooled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slimfast
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.network import Network
from slimfast.latency.pieces import split_forward
from slimfast.latency.replay import thin_strides
from slimfast.latency.tabulate import thin_network


class ChannelsLast(nn.Module):
    """A ConvNeXt in small: linear layers on channels that lie side by side, and a pooling of these."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4, device="cpu")
        self.fc1, self.fc2 = nn.Linear(24, 48, device="cpu"), nn.Linear(48, 20, device="cpu")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(20, 5, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.fc2(F.gelu(self.fc1(x))).permute(0, 3, 1, 2)
        return self.head(self.pool(x).flatten(1))


@pytest.fixture(scope="module")
def strided():
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    example = torch.randn(2, 3, 16, 16, device="cpu")
    graph = slimfast.trace_channels(model, example)
    assert any(operation.name == "aten.as_strided_" for operation in graph.operations)
    return model, example, graph


def test_every_piece_runs_at_every_width(strided):
    model, example, graph = strided
    runs = []

    def measure(module: nn.Module, given: object) -> float:
        args, kwargs = arguments(given)
        runs.append(module(*args, **kwargs))
        return 1.0

    table = slimfast.latency_table(graph, model, example, measure=measure)
    assert len(runs) == sum(len(piece.seconds) for piece in table.pieces) + 4


@torch.no_grad()
def test_the_last_piece_has_the_shapes_and_strides_of_the_thin_network(strided):
    model, example, graph = strided
    split = split_forward(Network.of(model), graph, arguments(example))
    piece = next(piece for piece in split.pieces if "aten.as_strided_" in piece.operations)
    widths = {group.name: group.n for group in graph} | {"fc1": 31, "fc2": 7}
    module, given = split.module_at(piece, widths)
    pooled = next(found for found in module(*given) if 7 in found.shape)
    seen: list[Tensor] = []
    thin = thin_network(Network.of(model), graph, widths)
    thin.pool.register_forward_hook(lambda module, args, output: seen.append(output))
    thin(example)
    assert tuple(seen[0].shape) == (2, 7, 1, 1)
    assert seen[0].stride(1) == pooled.stride(1) if pooled.ndim == 4 else pooled.shape == (2, 7)


@pytest.mark.parametrize(
    ("shape", "strides", "thin"),
    [
        ((2, 24, 1, 1), (24, 1, 24, 24), (2, 7, 1, 1)),
        ((3, 8, 5, 4), (160, 20, 4, 1), (3, 6, 5, 4)),
        ((3, 8, 5, 4), (160, 1, 32, 8), (3, 5, 5, 4)),
    ],
)
def test_strides_are_those_of_a_tensor_laid_out_alike(shape, strides, thin):
    wide = torch.empty_strided(shape, strides, device="cpu")
    order = sorted(range(len(shape)), key=lambda d: -strides[d])
    expected = torch.empty([thin[dim] for dim in order], device="cpu")
    expected = expected.permute([order.index(dim) for dim in range(len(shape))])
    found = thin_strides(shape, wide.stride(), thin)
    for dim, length in enumerate(thin):
        if length > 1:
            assert found[dim] == expected.stride(dim)
    assert torch.empty(expected.numel(), device="cpu").as_strided(thin, found).shape == thin
