"""What the output feels of what consumers read, against explicit derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import slimfast
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.sensitivity import sensitivities


def felt(model: nn.Module, x: Any, batches: list[Any], samples: int = 512) -> dict[str, Tensor]:
    graph = slimfast.trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, batches, samples=samples, dtype=torch.float64)
    return sensitivities(model, consumers_of(model, graph)[0], calibration)


class Averaged(nn.Module):
    """Two convolutions; the second stream is read twice and joins in place."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.back(torch.relu(self.inner(input=x)))
        pooled = torch.relu_(x).mean((2, 3))
        logits: Tensor = self.last(pooled)
        return logits


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_the_sum_over_positions_of_deviation_times_slope_squared() -> None:
    torch.manual_seed(0)
    model = Averaged(1).eval()
    x = images(10)
    found = felt(model, x[:1], [x[:4], x[4:]])
    with torch.no_grad():
        stream = model.first(x)
        inside = torch.relu(model.inner(stream))

    def rest_of_inner(seen: Tensor) -> Tensor:
        out = stream + model.back(torch.relu(model.inner(seen)))
        return model.last(torch.relu(out).mean((2, 3)))[:, 0]

    def rest_of_back(seen: Tensor) -> Tensor:
        return model.last(torch.relu(stream + model.back(seen)).mean((2, 3)))[:, 0]

    for name, seen, rest in (("inner", stream, rest_of_inner), ("back", inside, rest_of_back)):
        at = seen.clone().requires_grad_()
        # One output and no sample that another depends on: the slope of the sum has each sample's own.
        (slope,) = torch.autograd.grad(rest(at).sum(), at)
        change = ((seen - seen.mean((0, 2, 3), keepdim=True)) * slope).sum((2, 3))
        expected = change.square().mean(0).double()
        assert torch.allclose(found[f"{name}.weight"], expected, rtol=1e-4), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_several_outputs_are_summed_in_expectation() -> None:
    torch.manual_seed(0)
    model = Averaged(3).eval()
    x = images(6)
    with torch.no_grad():
        pooled = torch.relu((s := model.first(x)) + model.back(torch.relu(model.inner(s)))).mean((2, 3))
    spread = (pooled - pooled.mean(0)).square().mean(0).double()
    expected = spread * model.last.weight.detach().double().square().sum(0)
    found = felt(model, x[:1], [x] * 400, samples=2400)["last.weight"]
    # 2,400 signs: one standard error is at most sqrt(2 / 2400) of it, 3 %.
    assert torch.allclose(found, expected, rtol=0.15)


def test_one_that_the_output_does_not_feel() -> None:
    class Ignored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.a(x))
            return self.b(x), self.c(x).argmax(1)

    torch.manual_seed(0)
    x = torch.randn(8, 4)
    found = felt(Ignored().eval(), x[:1], [x])
    assert (found["c.weight"] == 0).all()
    assert (found["b.weight"] > 0).any()


def test_an_output_without_slope_is_an_error() -> None:
    class Decided(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    torch.manual_seed(0)
    model = Decided(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(8, 4)
    with pytest.raises(slimfast.SlimfastError, match="outputs that can be differentiated, got none"):
        felt(model, x[:1], [x])


def test_widths_go_where_the_output_feels_them() -> None:
    """Of two alike branches the one whose output is scaled up gets more."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)
            self.c, self.d = nn.Linear(8, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            low: Tensor = self.b(torch.relu(self.a(x)))
            high: Tensor = self.d(torch.relu(self.c(x)))
            return low + 20 * high

    torch.manual_seed(0)
    model = Branches().eval()
    model.c.load_state_dict(model.a.state_dict())
    model.d.load_state_dict(model.b.state_dict())
    x = torch.randn(64, 8)
    graph = slimfast.trace_channels(model, x[:1])
    calibration = slimfast.calibrate(model, graph, [x])
    widths = slimfast.plan(model, x[:1], macs=0.6, calibration=calibration).widths()
    assert widths["c"] > widths["a"]


class Recomputed(nn.Module):
    """Its blocks are computed again in the backward pass, in eval mode too, as some public classes do."""

    def __init__(self, again: bool | None) -> None:
        super().__init__()
        self.again = again
        self.first = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
        )
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = x + (block(x) if self.again is None else checkpoint(block, x, use_reentrant=self.again))
        logits: Tensor = self.last(x)
        return logits


@pytest.mark.parametrize("again", [False, True], ids=["saved tensors", "reentrant"])
@pytest.mark.parametrize("memory", [1 << 30, 1 << 9], ids=["in memory", "spilled"])
def test_blocks_that_are_computed_again_are_felt_as_others(again: bool, memory: int) -> None:
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    found = {}
    for kind in (None, again):
        torch.manual_seed(0)
        model = Recomputed(kind).eval()
        graph = slimfast.trace_channels(model, rows[:1])
        calibration = slimfast.calibrate(model, graph, [rows], dtype=torch.float64)
        found[kind] = sensitivities(model, consumers_of(model, graph)[0], calibration, memory=memory)
        plan = slimfast.plan(model, rows[:1], params=0.6, calibration=calibration)
        thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
        assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters())
    assert found[None].keys() == found[again].keys()
    for name, values in found[None].items():
        assert bool((values > 0).any())
        torch.testing.assert_close(found[again][name], values)
    # And is as it was for those who train.
    assert issubclass(torch.utils.checkpoint.CheckpointFunction, torch.autograd.Function)


class Hiding(nn.Module):
    """What its output depends on is hidden from a backward pass, in the way that ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def part(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.how == "block":
            with torch.no_grad():
                part = self.part(x)
        elif self.how == "inference block":
            with torch.inference_mode():
                part = self.part(x)
        else:
            part = self.part(x)
        part = {"detach": part.detach(), "data": part.data}.get(self.how, part)
        logits: Tensor = self.last(part)
        if self.how == "two outputs":
            return logits, torch.relu(part)
        return (logits.detach(), torch.relu(part)) if self.how == "an output" else logits


class Decorated(Hiding):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Inferring(Hiding):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


@pytest.mark.parametrize("memory", [1 << 30, 1 << 9], ids=["in memory", "spilled"])
@pytest.mark.parametrize(
    ("kind", "how", "open_to_all"),
    [
        (Hiding, "detach", ""),
        (Hiding, "data", ""),
        (Hiding, "block", ""),
        (Hiding, "inference block", ""),
        (Hiding, "an output", "two outputs"),
        (Decorated, "", ""),
        (Inferring, "", ""),
    ],
)
def test_what_a_forward_hides_is_felt(kind: Any, how: str, open_to_all: str, memory: int) -> None:
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    found = []
    for model in (Hiding(open_to_all), kind(how)):
        for number, tensor in enumerate(model.parameters()):
            tensor.data = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        graph = slimfast.trace_channels(model.eval(), rows[:1])
        calibration = slimfast.calibrate(model, graph, [rows[:5], rows[5:]], dtype=torch.float64)
        found.append(sensitivities(model, consumers_of(model, graph)[0], calibration, memory=memory))
    assert found[0].keys() == found[1].keys() >= {"second.weight"}
    for name, values in found[0].items():
        assert bool((values > 0).all())
        torch.testing.assert_close(found[1][name], values)


def test_an_estimate_of_a_derivative_stays_as_the_network_has_it() -> None:
    class Straight(Hiding):
        def part(self, x: Tensor) -> Tensor:
            inner = torch.tanh(self.second(torch.tanh(self.first(x))))
            return inner + (torch.round(inner) - inner).detach()

    torch.manual_seed(0)
    rows = torch.randn(12, 5)
    # With no other part hidden, and with one that is.
    found = [felt(Straight(how).eval(), rows[:1], [rows]) for how in ("two outputs", "an output")]
    for name, values in found[0].items():
        assert bool((values > 0).any()), name
        assert bool((found[1][name] > 0).any()), name


def test_an_output_of_complex_numbers_is_felt_as_its_two_parts() -> None:
    class Spectrum(Hiding):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(self.last(self.part(x)))
            return torch.view_as_real(spectrum) if self.how else spectrum

    found = []
    for how in ("real", ""):
        torch.manual_seed(0)
        model = Spectrum(how).eval()
        rows = torch.randn(12, 5)
        found.append(felt(model, rows[:1], [rows]))
    for name, values in found[0].items():
        assert bool((values > 0).any())
        torch.testing.assert_close(found[1][name], values)
