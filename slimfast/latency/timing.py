"""How long a network takes: medians of runs in turn, with their spread, in the runtime it is meant for."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import torch
from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph.recording.inputs import arguments, map_tensors
from slimfast.latency.clock import as_used, batch_of, device_of, sampled, undisturbed
from slimfast.latency.runtimes import Runtime, check_runtime, machine_name, runner
from slimfast.wrappers import unwrapped

# A user's own clock: seconds of one forward of a module on an example.
Measure: TypeAlias = Callable[[nn.Module, Any], float]

# A spread above this says that something else runs beside.
NOISY = 0.20


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward of a network takes.

    Attributes:
        seconds: The median of the samples.
        p20: A fifth of the samples took no longer.
        p80: A fifth of them took at least as long.
        undisturbed: The mean of the fastest quarter of them, which other programs disturb least.
        samples: How many there are.
        runtime: What ran it: ``torch``, ``compile``, ``onnxruntime``, or ``measure`` for a function of the
            user's own.
        threads: With how many threads; None where a function of the user's own has measured.
        batch: The length of the first axis of the first input.
        machine: The processor.

    Example:
        print(slimfast.measure_latency(thin, example).seconds)
    """

    seconds: float
    p20: float
    p80: float
    undisturbed: float
    samples: int
    runtime: str
    threads: int | None
    batch: int
    machine: str

    @property
    def spread(self) -> float:
        """How far the p80 is above the p20, as a share of the median."""
        return (self.p80 - self.p20) / self.seconds if self.seconds else 0.0

    def share_of(self, other: Latency) -> float:
        """Estimate the share of another network's time that this one takes, both measured in one call.

        It is the share of the undisturbed times: on a machine that does other things too it repeats better
        than that of the medians.

        Example:
            wide, thin = slimfast.measure_latency([model, thin], example)
            print(f"{thin.share_of(wide):.1%} of the time")
        """
        return self.undisturbed / other.undisturbed

    def __str__(self) -> str:
        where = self.runtime if self.threads is None else f"{self.runtime}, {threads_text(self.threads)}"
        return (
            f"{seconds_text(self.seconds)} ({seconds_text(self.p20)} to {seconds_text(self.p80)} in "
            f"{self.samples} samples; {where}, batch {self.batch})"
        )


def seconds_text(seconds: float) -> str:
    """Write a time in three digits and its unit: 0.0123 -> 12.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size or unit == "us":
            number = seconds / size
            return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
    raise AssertionError("unreachable")


def threads_text(threads: int) -> str:
    """Write a number of threads."""
    return f"{threads} thread{'' if threads == 1 else 's'}"


@overload
def measure_latency(
    model: nn.Module,
    example: Any,
    *,
    runtime: Runtime = ...,
    threads: int | None = ...,
    device: str | torch.device | None = ...,
    repeats: int | None = ...,
    seconds: float = ...,
    measure: Measure | None = ...,
) -> Latency: ...
@overload
def measure_latency(
    model: Mapping[str, nn.Module],
    example: Any,
    *,
    runtime: Runtime = ...,
    threads: int | None = ...,
    device: str | torch.device | None = ...,
    repeats: int | None = ...,
    seconds: float = ...,
    measure: Measure | None = ...,
) -> dict[str, Latency]: ...
@overload
def measure_latency(
    model: Sequence[nn.Module],
    example: Any,
    *,
    runtime: Runtime = ...,
    threads: int | None = ...,
    device: str | torch.device | None = ...,
    repeats: int | None = ...,
    seconds: float = ...,
    measure: Measure | None = ...,
) -> list[Latency]: ...
def measure_latency(
    model: nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module],
    example: Any,
    *,
    runtime: Runtime = "torch",
    threads: int | None = None,
    device: str | torch.device | None = None,
    repeats: int | None = None,
    seconds: float = 1.0,
    measure: Measure | None = None,
) -> Latency | dict[str, Latency] | list[Latency]:
    """Measure how long one forward of a network takes, or of several that are to be compared.

    Networks are warmed up, and several of them run in turn, so that what the machine does meanwhile happens
    to all alike: compare times of one call. They run in eval mode without gradients, and are as they were
    afterwards; so is PyTorch's number of threads.

    Args:
        model: The network, or several by name or in a list.
        example: A tensor, a tuple or a dict of their arguments.
        runtime: What runs them: ``"torch"`` as they are, ``"compile"`` (:func:`torch.compile`) or
            ``"onnxruntime"`` on the CPU.
        threads: With how many threads; PyTorch's own number unless given.
        device: Where to run; where the network is unless given. The network itself stays where it is.
        repeats: How many samples to take of each, instead of as many as fit into ``seconds``.
        seconds: How long to measure each network.
        measure: A function of your own from a module and an example to the seconds of one forward, for a
            device that PyTorch does not know; called ``repeats`` times for each network, else once.

    Returns:
        The latency; of several networks a dict or a list of them, as they were given.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For a runtime that is not installed (the line says what to install) or that cannot
            take the network, and for a forward that fails.

    Example:
        both = slimfast.measure_latency({"wide": model, "thin": thin}, example, threads=1)
        print(both["thin"].share_of(both["wide"]))
    """
    _check(threads, repeats, seconds)
    check_runtime(runtime)
    if isinstance(model, nn.Module):
        named = {"": model}
    elif isinstance(model, Mapping):
        named = dict(model)
    elif isinstance(model, Sequence) and not isinstance(model, str):
        named = {str(i): one for i, one in enumerate(model)}
    else:
        raise ArgumentTypeError(f"latency: expected a module or several, got {type(model).__name__}")
    for one in named.values():
        if not isinstance(one, nn.Module):
            raise ArgumentTypeError(f"latency: expected modules, got {type(one).__name__}")
    if not named:
        raise ArgumentError("latency: expected at least one module, got none")
    networks = {name: unwrapped(one) for name, one in named.items()}
    if measure is not None:
        found = {name: _by_hand(measure, one, example, repeats or 1) for name, one in networks.items()}
    else:
        found = _measured(networks, arguments(example), runtime, threads, device, repeats, seconds)
    _warn_of_noise(found)
    if isinstance(model, nn.Module):
        return found[""]
    return found if isinstance(model, Mapping) else list(found.values())


def _check(threads: int | None, repeats: int | None, seconds: float) -> None:
    for name, value in {"threads": threads, "repeats": repeats}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError(f"latency: expected {name} to be an integer >= 1, got {value!r}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ArgumentError(f"latency: expected seconds above 0, got {seconds!r}")


def _by_hand(measure: Measure, model: nn.Module, example: Any, repeats: int) -> Latency:
    samples = [checked_seconds(measure(model, example)) for _ in range(repeats)]
    return _summary(samples, "measure", None, batch_of(example), "measured by a function")


def checked_seconds(seconds: object) -> float:
    """Return what a user's own clock has said; :class:`SlimfastError` where that is no time."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise SlimfastError(f"latency: expected measure to return seconds above 0, got {seconds!r}")
    return float(seconds)


def _measured(
    networks: Mapping[str, nn.Module],
    given: Arguments,
    runtime: Runtime,
    threads: int | None,
    device: str | torch.device | None,
    repeats: int | None,
    seconds: float,
) -> dict[str, Latency]:
    first = next(iter(networks.values()))
    where = torch.device(device) if device is not None else device_of(first, given)
    if runtime == "onnxruntime" and where.type != "cpu":
        raise ArgumentError(f"latency: expected runtime onnxruntime on the cpu, got device {where}")
    if device is not None:
        networks = {name: copy.deepcopy(one).to(where) for name, one in networks.items()}
    args, kwargs = map_tensors(given, lambda tensor: tensor.detach().to(where))
    with as_used(networks.values(), threads) as used:
        runs = {name: runner(one, (args, kwargs), runtime, used) for name, one in networks.items()}
        samples = sampled(runs, where, repeats, seconds)
    return {
        name: _summary(taken, runtime, used, batch_of((args, kwargs)), machine_name(where))
        for name, taken in samples.items()
    }


def _summary(
    samples: Sequence[float], runtime: str, threads: int | None, batch: int, machine: str
) -> Latency:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Latency(
        seconds=statistics.median(ordered),
        p20=ordered[round(0.2 * last)],
        p80=ordered[round(0.8 * last)],
        undisturbed=undisturbed(ordered),
        samples=len(ordered),
        runtime=runtime,
        threads=threads,
        batch=batch,
        machine=machine,
    )


def _warn_of_noise(found: Mapping[str, Latency]) -> None:
    widest = max(found.values(), key=lambda one: one.spread)
    if widest.spread > NOISY:
        warnings.warn(
            f"latency: the samples spread by {widest.spread:.0%} of their median: something else runs on "
            "this machine; close it, or measure longer with seconds= or repeats=",
            stacklevel=3,
        )
