"""On a GPU nothing waits for the device at a layer: looks of the host at values of tensors are counted."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.calibration import massive
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.sensitivity import sensitivities

# What of a tensor brings its values to the host.
LOOKS = ("__bool__", "__float__", "__int__", "item", "tolist", "numpy", "cpu")


def looks(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """Count the looks at values while this runs."""
    seen = 0

    def counted(own: Callable[..., object], tensor: Tensor, *args: object, **kwargs: object) -> object:
        nonlocal seen
        seen += 1
        return own(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:
        # As on a GPU, where a look costs a wait.
        patch.setattr(massive, "is_near", lambda x: False)
        for name in LOOKS:
            own = getattr(Tensor, name)
            patch.setattr(Tensor, name, functools.partialmethod(functools.partial(counted, own)))
        run()
    return seen


def layers(count: int) -> tuple[nn.Module, slimfast.ChannelGraph]:
    """A chain of linear layers, and its groups."""
    torch.manual_seed(count)
    chain = nn.Sequential(*(part for _ in range(count) for part in (nn.Linear(8, 8), nn.Tanh())))
    return chain, slimfast.trace_channels(chain, torch.randn(1, 3, 8))


def looks_for_each_batch(monkeypatch: pytest.MonkeyPatch, run: Callable[[int], object]) -> float:
    """Count how many more looks six batches cost than two, for each of the four."""
    two, six = (looks(monkeypatch, functools.partial(run, batches)) for batches in (2, 6))
    return (six - two) / 4


def test_a_batch_of_a_calibration_waits_once_however_many_layers_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for count in (3, 9):
        model, graph = layers(count)
        run = functools.partial(calibrated, model, graph)
        found.append(looks_for_each_batch(monkeypatch, run))
    assert found[0] == found[1]
    assert found[0] >= 1


def test_a_batch_of_the_sensitivities_waits_once_however_many_layers_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for count in (3, 9):
        model, graph = layers(count)
        consumers = consumers_of(model, graph)[0]
        made = {batches: calibrated(model, graph, batches) for batches in (2, 6)}

        def run(batches: int, model: nn.Module = model, consumers=consumers, made=made) -> object:
            return sensitivities(model, consumers, made[batches])

        found.append(looks_for_each_batch(monkeypatch, run))
    assert found[0] == found[1]
    assert found[0] >= 1


def calibrated(model: nn.Module, graph: slimfast.ChannelGraph, batches: int) -> slimfast.Calibration:
    # Of several lengths: those of one run together.
    given = [torch.randn(4, 3 + i, 8, generator=torch.Generator().manual_seed(i)) for i in range(batches)]
    return slimfast.calibrate(model, graph, given, samples=4 * batches, backend="reference")
