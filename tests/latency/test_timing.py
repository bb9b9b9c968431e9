"""Latencies: what is measured, in which runtime, and that nothing stays changed."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch import nn

import slimfast
from slimfast import Latency, SlimfastError, measure_latency
from slimfast.latency import clock, timing
from slimfast.latency.timing import seconds_text

# The machine that runs the tests may be busy.
pytestmark = pytest.mark.filterwarnings("default:latency. the samples spread")

EXAMPLE = torch.zeros(4, 6, device="cpu")


class Watched(nn.Module):
    """Notes in what state it is run."""

    def __init__(self, log: list[str] | None = None, name: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3, device="cpu")
        self.log = [] if log is None else log
        self.name = name
        self.states: set[tuple[bool, bool, int]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        self.states.add((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return self.layer(x)


def test_a_network_runs_in_eval_mode_and_is_as_it_was():
    model = Watched()
    model.layer.eval()
    threads = torch.get_num_threads()
    found = measure_latency(model, EXAMPLE, threads=threads + 1, repeats=3)
    assert model.states == {(False, False, threads + 1)}
    assert (model.training, model.layer.training) == (True, False)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert (found.samples, found.runtime, found.threads, found.batch) == (3, "torch", threads + 1, 4)
    assert 0 < found.p20 <= found.seconds <= found.p80
    assert found.machine


def test_all_is_as_it_was_after_a_forward_that_fails():
    model = Watched()
    threads = torch.get_num_threads()
    with pytest.raises(SlimfastError, match="latency: the forward failed: mat1 and mat2") as caught:
        measure_latency(model, EXAMPLE[:, :5], threads=threads + 1)
    assert "\n" not in str(caught.value)
    assert model.training
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_several_networks_run_in_turn(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(clock, "_SAMPLE_SECONDS", 0.0)
    models = {name: Watched(log, name) for name in "abc"}
    found = measure_latency(models, EXAMPLE, repeats=4)
    assert list(found) == ["a", "b", "c"]
    assert log[-12:] == ["a", "b", "c"] * 4
    assert all(one.samples == 4 for one in found.values())


def test_a_list_gives_a_list():
    found = measure_latency([Watched(), Watched()], EXAMPLE, repeats=1)
    assert [type(one) for one in found] == [Latency, Latency]


def test_arguments_by_name_are_passed():
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

    assert measure_latency(Two(), {"left": EXAMPLE, "right": EXAMPLE}, repeats=1).batch == 4


def test_the_users_own_clock_is_asked():
    seen = []

    def measure(module: nn.Module, example: object) -> float:
        seen.append((module, example))
        return 0.25 * len(seen)

    model = Watched()
    with pytest.warns(UserWarning, match="spread by 100%"):
        found = measure_latency(model, EXAMPLE, measure=measure, repeats=3)
    assert seen == [(model, EXAMPLE)] * 3
    assert (found.seconds, found.p20, found.p80, found.samples) == (0.5, 0.25, 0.75, 3)
    assert (found.runtime, found.threads, found.spread) == ("measure", None, 1.0)


def test_a_noisy_machine_is_told_of():
    times = iter([1.0, 1.0, 1.0, 1.5, 1.5])
    with pytest.warns(UserWarning, match=r"the samples spread by 50% .* seconds= or repeats="):
        measure_latency(Watched(), EXAMPLE, measure=lambda module, example: next(times), repeats=5)


def test_a_quiet_machine_is_not():
    times = iter([1.0, 1.0, 1.05, 1.1, 1.15])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_latency(Watched(), EXAMPLE, measure=lambda module, example: next(times), repeats=5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"runtime": "tensorrt"}, "expected runtime torch, compile or onnxruntime, got 'tensorrt'"),
        ({"runtime": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"threads": 0}, "expected threads to be an integer >= 1, got 0"),
        ({"repeats": True}, "expected repeats to be an integer >= 1, got True"),
        ({"seconds": 0}, "expected seconds above 0, got 0"),
        ({"seconds": float("nan")}, "expected seconds above 0, got nan"),
    ],
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        measure_latency(Watched(), EXAMPLE, **arguments)


@pytest.mark.parametrize("model", [3, "net", [nn.ReLU(), 3]])
def test_what_is_no_network(model):
    with pytest.raises(TypeError, match="latency: expected"):
        measure_latency(model, EXAMPLE)


@pytest.mark.parametrize("models", [[], {}])
def test_no_network(models):
    with pytest.raises(ValueError, match="expected at least one module"):
        measure_latency(models, EXAMPLE)


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(
        SlimfastError, match=r"needs onnxruntime, not installed: pip install slimfast\[onnx\]"
    ):
        measure_latency(Watched(), EXAMPLE, runtime="onnxruntime")


def test_onnx_runtime_runs_a_network():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Linear(6, 4, device="cpu"), nn.ReLU())
    model.train()
    found = measure_latency(model, EXAMPLE, runtime="onnxruntime", threads=1, repeats=2)
    assert (found.runtime, found.threads, found.samples) == ("onnxruntime", 1, 2)
    assert model.training


def test_a_network_stays_on_its_device():
    model = Watched()
    measure_latency(model, EXAMPLE, device="cpu", repeats=1)
    # A copy has run.
    assert not model.states


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5, "2.50 s"),
        (0.9999, "1.00 s"),
        (0.0123, "12.3 ms"),
        (0.5, "500 ms"),
        (4.2e-5, "42.0 us"),
        (1e-8, "0.01 us"),
    ],
)
def test_times_are_written_in_three_digits(seconds, text):
    assert seconds_text(seconds) == text


def test_a_share_is_that_of_the_fastest_quarters():
    """What disturbs three quarters of the samples of one network changes no share."""
    told = ("torch", 1, 1, "a board")
    quiet = timing._summary([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], *told)
    disturbed = timing._summary([9.0, 3.0, 7.0, 2.0, 8.0, 1.0, 9.0, 9.0, 5.0, 9.0, 9.0, 9.0], *told)
    assert disturbed.seconds == 8.5
    assert disturbed.undisturbed == 2.0
    assert disturbed.share_of(quiet) == 0.5
    assert timing._summary([6.0, 2.0], *told).undisturbed == 4.0


def test_a_latency_is_told_in_one_line():
    found = timing.Latency(0.01, 0.0098, 0.0104, 0.0097, 31, "torch", 2, 16, "a board")
    assert str(found) == "10.0 ms (9.80 ms to 10.4 ms in 31 samples; torch, 2 threads, batch 16)"
    assert found.spread == pytest.approx(0.06)


def test_what_wraps_a_network_is_taken_off():
    averaged = torch.optim.swa_utils.AveragedModel(Watched())
    assert slimfast.measure_latency(averaged, EXAMPLE, repeats=1).samples == 1
