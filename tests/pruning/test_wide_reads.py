"""Units that wide layers read are chosen by activations too, in memory for a share of the positions alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import slimfast
from slimfast.calibration import consumers
from slimfast.errors import SlimfastError
from slimfast.pruning import wide_reads


class _Largest(TorchDispatchMode):
    """Notes how large the largest tensor is that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def _mlp(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5)).eval()


def _conv():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 2, groups=2),
    ).eval()  # fmt: skip


def _tokens():
    torch.manual_seed(5)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(40, 8), nn.Linear(8, 24), nn.Linear(24, 3)

        def forward(self, input_ids, attention_mask=None):
            return self.down(torch.relu(self.up(self.embed(input_ids))))

    return Tokens().eval()


def _padded():
    mask = torch.ones(16, 9, dtype=torch.long)
    mask[::2, 4:] = 0
    return {"input_ids": torch.randint(0, 40, (16, 9)), "attention_mask": mask}


def _with_a_massive_token():
    ids = torch.randint(1, 40, (16, 9))
    ids[:, 0] = 0
    return {"input_ids": ids}


def _tokens_of_which_one_is_massive():
    model = _tokens()
    with torch.no_grad():
        model.embed.weight[0] *= 100.0
    return model


CASES = {
    "linear": (lambda: _mlp(30), lambda: torch.randn(64, 12)),
    "convolutions, one of them in groups": (_conv, lambda: torch.randn(6, 3, 8, 8)),
    "tokens of which some are padding": (_tokens, _padded),
    "tokens of which one is massive": (_tokens_of_which_one_is_massive, _with_a_massive_token),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_chosen_is_what_the_moments_of_all_pairs_say(name, monkeypatch):
    """With every position kept there is nothing that the moments know better."""
    make, batch = CASES[name]
    model = make()
    torch.manual_seed(1)
    batch = batch()
    graph = slimfast.trace_channels(model, batch)
    plan = slimfast.plan(model, batch, params=0.6)
    known = slimfast.calibrate(model, graph, [batch], samples=64)
    expected = slimfast.select(model, plan, method="activations", calibration=known)
    monkeypatch.setattr(consumers, "LARGEST", 8 * 7**2)
    left = slimfast.calibrate(model, graph, [batch], samples=64, memory=0)
    assert len(left.left) > len(known.left)
    found = slimfast.select(model, plan, method="activations", calibration=left)
    assert [g.keep for g in found.groups] == [g.keep for g in expected.groups]
    assert any(g.width < g.n for g in found.groups)


@pytest.mark.parametrize("width", [17000, 30000])
def test_a_layer_of_any_width_is_cut_by_activations_in_bounded_memory(width):
    model = _mlp(width)
    # Half of the units never vary: they are never read as anything but a constant.
    with torch.no_grad():
        model[0].weight[width // 2 :] = 0.0
    example = torch.randn(40, 12)
    graph = slimfast.trace_channels(model, example)
    calibration = slimfast.calibrate(model, graph, [example])
    assert f"reads {width} variables, whose moments take" in calibration.left["2.weight"]
    plan = slimfast.plan_widths(graph, {}, overrides={"0": 20})
    with _Largest() as largest:
        chosen = slimfast.select(model, plan, method="activations", calibration=calibration)
    (keep,) = (group.keep for group in chosen.groups)
    assert len(keep) == 20
    assert max(keep) < width // 2
    assert largest.numbers <= wide_reads._BYTES // 8 < width**2 // 10


def test_positions_are_a_share_of_all_samples(monkeypatch):
    monkeypatch.setattr(wide_reads, "_POSITIONS", 10)
    monkeypatch.setattr(consumers, "LARGEST", 8 * 7**2)
    model = _conv()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(5)]
    graph = slimfast.trace_channels(model, batches[0])
    calibration = slimfast.calibrate(model, graph, batches, samples=20, memory=0)
    rows = wide_reads.wide_rows(model, graph, calibration, [graph["0"]])
    (row,) = rows["0"]
    assert row.shape[0] == 12
    assert 10 <= row.shape[1] <= 15
    assert np.isclose(float(row.norm()), 1.0)


def test_a_group_that_no_known_layer_reads_is_refused_as_before(monkeypatch):
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Odd(16, 3)).eval()
    example = torch.randn(8, 6)
    graph = slimfast.trace_channels(model, example)
    calibration = slimfast.calibrate(model, graph, [example])
    plan = slimfast.plan_widths(graph, {}, overrides={"0": 4})
    with pytest.raises(
        SlimfastError, match=r"select: 0 was not calibrated: 2 \(Odd\) is not known to be linear"
    ):
        slimfast.select(model, plan, method="activations", calibration=calibration)


def test_what_is_not_finite_is_named(monkeypatch):
    monkeypatch.setattr(consumers, "LARGEST", 8 * 1000**2)
    model = _mlp(1200)
    example = torch.randn(20, 12)
    graph = slimfast.trace_channels(model, example)
    calibration = slimfast.calibrate(model, graph, [example], memory=0)
    with torch.no_grad():
        model[0].bias[17] = float("inf")
    plan = slimfast.plan_widths(graph, {}, overrides={"0": 20})
    with pytest.raises(SlimfastError, match=r"select: expected finite activations, got others \(read by 2\)"):
        slimfast.select(model, plan, method="activations", calibration=calibration)
