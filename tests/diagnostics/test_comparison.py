"""The quick comparison checks results before it times them, on the layers it says."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from slimfast.diagnostics import comparison
from slimfast.diagnostics.comparison import compare_ops, random_layers, weight_matrices
from slimfast.errors import SlimfastError

LAYERS = random_layers({"wide": (6, 20), "tall": (12, 5)})


def test_every_row_names_its_backend_and_is_right():
    calls = []
    rows = compare_ops(LAYERS, repeats=2, backend="reference", progress=lambda *at: calls.append(at))
    assert [row.op for row in rows] == ["covariance", "eigvalsh", "covariance + eigvalsh", "gather"]
    assert {row.backend for row in rows} == {"reference"}
    # The house's rule for float32: at most twice PyTorch's own error, and PyTorch's is a few roundings.
    for row in rows:
        assert row.torch_error < 1e-4
        assert row.error <= 2 * row.torch_error + torch.finfo(torch.float32).eps
        assert row.seconds > 0
    assert rows[-1].error == rows[-1].torch_error == 0
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_wrong_result_shows_as_an_error(monkeypatch):
    monkeypatch.setattr(comparison, "grouped_eigvalsh", lambda mats, **_: [torch.ones(len(m)) for m in mats])
    rows = compare_ops(LAYERS, repeats=1, backend="reference")
    assert next(row for row in rows if row.op == "eigvalsh").error > 0.1


def test_times_are_medians_of_runs_in_turn(monkeypatch):
    # Ours takes 5, 1 and 2 seconds by this clock, and PyTorch, in turn with it, 1, 3 and 7.
    seconds = itertools.cycle([0, 5, 0, 1, 0, 1, 0, 3, 0, 2, 0, 7])
    monkeypatch.setattr("time.perf_counter", itertools.accumulate(seconds).__next__)
    rows = compare_ops(LAYERS, repeats=3, backend="reference")
    assert [(row.seconds, row.torch_seconds) for row in rows] == [(2, 3)] * 4


def test_the_matrices_of_a_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1), nn.Linear(5, 2).half())
    found = weight_matrices(model)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"0.weight": (4, 27), "3.weight": (2, 5)}
    assert found["3.weight"].dtype == torch.float32
    assert not found["0.weight"].requires_grad


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one layer"):
        compare_ops({})
    with pytest.raises(ValueError, match="at least one repeat, got 0"):
        compare_ops(LAYERS, repeats=0)
    with pytest.raises(ValueError, match="nonsense"):
        compare_ops(LAYERS, backend="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA backend may run here")
def test_a_backend_that_cannot_run():
    with pytest.raises(SlimfastError, match="cuda"):
        compare_ops(LAYERS, backend="cuda")
