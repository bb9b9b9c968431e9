"""Massive tokens count as much as the bound says, and where there are none nothing changes by a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.calibration import massive, measuring, positions, sensitivity
from slimfast.calibration.consumers import Consumer, consumers_of
from slimfast.calibration.massive import BOUND, shrinking
from slimfast.graph import trace_channels


class Mlp(nn.Module):
    """Tokens (N, T, 6) through 12 hidden channels; what is read first is what comes in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def hidden(model: Mlp, x: Tensor) -> Tensor:
    return torch.relu(model.first(x)).detach()


def consumer_of(model: nn.Module, example: Any) -> Consumer:
    (found,) = consumers_of(model, trace_channels(model, example))[0]
    return found


def tokens(samples: int = 5, length: int = 9, factor: float = 1.0, at: int = 0) -> Tensor:
    """Tokens of like size, of which one of each sample is that much larger."""
    x = torch.randn(samples, length, 6, generator=torch.Generator().manual_seed(1))
    x = x / x.norm(dim=-1, keepdim=True)
    x[:, at] *= factor
    return x


def brought_down(view: Tensor, bound: float = BOUND) -> Tensor:
    """By hand: every token's energy is at most so many times the median of its sample."""
    found = view.double().clone()
    for sample in found:
        energies = sorted(float(token.square().sum()) for token in sample)
        limit = bound * energies[(len(energies) - 1) // 2]
        for token in sample:
            token *= min(1.0, (limit / max(float(token.square().sum()), 1e-300)) ** 0.5)
    return found


@pytest.mark.parametrize("at", [0, 4])
def test_moments_are_those_of_tokens_brought_down_to_the_bound(at: int) -> None:
    model, x = Mlp().eval(), tokens(factor=300.0, at=at)
    read = slimfast.calibrate(model, trace_channels(model, x), [x]).readings["second.weight"]
    rows = brought_down(hidden(model, x)).reshape(-1, 12)
    assert torch.allclose(read.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.allclose(read.covariance, torch.cov(rows.T), rtol=1e-4, atol=1e-6)
    assert read.count == len(rows)


@pytest.mark.parametrize("near", [True, False])
def test_no_token_is_touched_where_none_is_massive(monkeypatch: pytest.MonkeyPatch, *, near: bool) -> None:
    # On a GPU nobody looks, and all are multiplied by 1.
    monkeypatch.setattr(massive, "is_near", lambda x: near)
    model, x = Mlp().eval(), tokens(factor=3.0)
    graph = trace_channels(model, x)

    def thin_and_curve() -> tuple[Tensor, Tensor, Any]:
        calibration = slimfast.calibrate(model, graph, [x])
        curve = slimfast.error_curves(model, graph, calibration)["first"]
        thin = slimfast.slim(
            model, x, params=0.6, calibration=calibration, select="activations", repair="activations"
        )
        return calibration.readings["second.weight"].covariance, torch.from_numpy(curve.residual), thin

    before = thin_and_curve()
    for module in (measuring, sensitivity, positions):
        monkeypatch.setattr(module, "shrinking", lambda *given: None)
    after = thin_and_curve()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    for ours, theirs in zip(before[2].parameters(), after[2].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_positions_of_a_convolution_are_no_tokens() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(2, 3, 4, 4)
    x[:, :, 0, 0] *= 1000.0
    graph = trace_channels(model.eval(), x)
    found = slimfast.calibrate(model, graph, [x]).readings["2.weight"]
    rows = model[1](model[0](x)).detach().double().permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.allclose(found.covariance, torch.cov(rows.T), rtol=1e-4)


def test_a_layer_that_reads_one_position_of_a_sample_has_no_tokens() -> None:
    model, x = Mlp().eval(), torch.randn(7, 6)
    consumer = consumer_of(model, x)
    read = hidden(model, x)
    read[0] *= 1e4
    assert shrinking(consumer, read, 7, None) is None
    # The same rows, where they are tokens of one sample.
    factors = shrinking(consumer, read, 1, None)
    assert factors is not None
    assert factors.shape == (7,)
    assert int((factors < 1).sum()) == 1


def test_it_depends_on_each_sample_alone() -> None:
    model, x = Mlp().eval(), tokens(factor=300.0)
    x[1] *= 50.0
    consumer, read = consumer_of(model, x), hidden(model, x)
    whole = shrinking(consumer, read, 5, None)
    assert whole is not None
    parts = [shrinking(consumer, part, len(part), None) for part in read.split(2)]
    assert torch.equal(whole, torch.cat([part for part in parts if part is not None]))
    # Laid out flat it is the same.
    flat = shrinking(consumer, read.reshape(-1, 12), 5, None)
    assert flat is not None
    assert torch.equal(whole.reshape(-1), flat)


def test_padding_is_no_measure_of_what_is_usual() -> None:
    model, x = Mlp().eval(), tokens(factor=300.0)
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[:, 3:] = False
    # Six tokens of padding that are massive themselves would be the median.
    x[:, 3:] *= 1e5
    consumer, read = consumer_of(model, x), hidden(model, x)
    factors = shrinking(consumer, read, 5, mask)
    assert factors is not None
    alone = shrinking(consumer, read[:, :3], 5, None)
    assert alone is not None
    assert torch.equal(factors[:, :3], alone)
    assert bool((factors[:, 3:] == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_energies_beyond_a_dtype_are_told(dtype: torch.dtype) -> None:
    read = torch.ones(1, 8, 12, dtype=dtype)
    # Squares of it are beyond float16.
    read[0, 2] = 16384.0
    factors = shrinking(consumer_of(Mlp().eval(), tokens()), read, 1, None)
    assert factors is not None
    assert float(factors[0, 2]) == pytest.approx(BOUND**0.5 / 16384.0, rel=1e-6)


def test_where_most_tokens_are_zero_nothing_is_massive() -> None:
    read = torch.zeros(2, 8, 12)
    read[:, 0] = 5.0
    assert shrinking(consumer_of(Mlp().eval(), tokens()), read, 2, None) is None


def test_numbers_that_are_none_are_still_refused() -> None:
    model, x = Mlp().eval(), tokens()
    graph = trace_channels(model, x)
    for wrong in (torch.inf, torch.nan):
        bad = x.clone()
        bad[2, 0, 0] = wrong
        with pytest.raises(slimfast.SlimfastError, match="second"):
            slimfast.calibrate(model, graph, [bad])


def test_one_massive_channel_neither_owns_the_curve_nor_hides_the_error() -> None:
    """A channel that a massive token drives is kept, and the others are chosen and fitted on typical
    tokens.
    """
    model = Mlp().eval()
    with torch.no_grad():
        model.first.weight[3] = torch.tensor([4.0, 0, 0, 0, 0, 0])
        model.first.bias.zero_()
        model.first.weight[[i for i in range(12) if i != 3], 0] *= 1e-3
    x = tokens(64, 16)
    x[:, 0] = 0.0
    x[:, 0, 0] = 1000.0
    graph = trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, [x])
    curve = slimfast.error_curves(model, graph, calibration)["first"]
    assert curve.ratio(1) < 0.95
    thin = slimfast.slim(
        model, x, params=0.6, calibration=calibration, select="activations", repair="activations"
    )
    (kept,) = slimfast.manifest(thin).keeps["first.weight"].values()
    assert 3 in kept.tolist()
    fit = slimfast.repair_report(thin).fits["second.weight"]
    assert fit.after is not None
    typical = x[:, 1:]
    wanted, got = model(typical).detach(), thin(typical).detach()
    real = float((wanted - got).square().sum() / (wanted - wanted.mean((0, 1))).square().sum())
    assert real / 4 < fit.after < real * 4
