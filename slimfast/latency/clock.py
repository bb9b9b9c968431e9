"""The clock: samples of runs in turn, and networks as they are used while it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.inputs import tensors_in
from slimfast.latency.runtimes import Run

# A sample lasts at least this long, so that the clock does not decide it.
_SAMPLE_SECONDS = 1e-3
_MOST_RUNS = 1000
# At least so many samples, however long one takes.
_LEAST_SAMPLES = 5
_WARM_RUNS = 2
# Which part of the samples, the fastest ones, tells what a run takes undisturbed, and how many at least.
_UNDISTURBED, _LEAST_UNDISTURBED = 0.25, 3


def sampled(
    runs: Mapping[str, Run], device: torch.device, repeats: int | None, seconds: float
) -> dict[str, list[float]]:
    """Take samples of several runs in turn: ``repeats`` of each, or as many as take about ``seconds`` each.

    A sample is the mean of as many runs as last a millisecond.
    """
    numbers: dict[str, int] = {}
    for name, run in runs.items():
        try:
            for _ in range(_WARM_RUNS):
                run()
        except SlimfastError:
            raise
        except Exception as error:
            raise SlimfastError(f"latency: the forward failed: {one_line(error)}") from error
        numbers[name] = min(_MOST_RUNS, max(1, round(_SAMPLE_SECONDS / max(_sample(run, 1, device), 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + seconds * len(runs)
    while True:
        taken = len(next(iter(samples.values())))
        if repeats is not None and taken >= repeats:
            return samples
        if repeats is None and taken >= _LEAST_SAMPLES and time.perf_counter() >= until:
            return samples
        for name, run in runs.items():
            samples[name].append(_sample(run, numbers[name], device))


def undisturbed(samples: Sequence[float]) -> float:
    """Estimate what a run takes with nothing else beside it: the mean of the fastest quarter of its samples.

    What else a machine does makes samples longer and never shorter, so that the fast ones repeat best.
    """
    count = max(_LEAST_UNDISTURBED, round(_UNDISTURBED * len(samples)))
    return statistics.fmean(sorted(samples)[:count])


def _sample(run: Run, number: int, device: torch.device) -> float:
    _wait_for(device)
    begin = time.perf_counter()
    for _ in range(number):
        run()
    _wait_for(device)
    return (time.perf_counter() - begin) / number


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def as_used(networks: Iterable[nn.Module], threads: int | None) -> Iterator[int]:
    """Have networks in eval mode, no gradients and so many threads meanwhile; yields the number."""
    modules = [module for network in networks for module in network.modules()]
    training = [module.training for module in modules]
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    for module in modules:
        module.training = False
    try:
        with torch.no_grad():
            yield threads or before
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def device_of(model: nn.Module, given: Any) -> torch.device:
    """Find where a network runs: where its first parameter or buffer is, or what it is given."""
    held: Iterator[Tensor] = (t for made in (model.parameters(), model.buffers()) for t in made)
    first = next(held, None)
    if first is None:
        first = next(iter(tensors_in(given)), None)
    return torch.device("cpu") if first is None else first.device


def batch_of(example: Any) -> int:
    """Read the batch off an example: the length of the first axis of its first tensor."""
    tensors = list(tensors_in(example))
    return tensors[0].shape[0] if tensors and tensors[0].ndim else 1
