"""How everything here is measured: correct first, then in turn inside one process; medians and spread."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slimfast.kernels.dispatch import select_backend

Run = Callable[[], Any]

# A sample lasts at least this long, so that the clock and one interruption do not decide it.
SAMPLE_SECONDS = 2e-3
MOST_ROUNDS = 25
LEAST_ROUNDS = 3
# A run this long is Python's for a good part, and begins without the garbage that the others left.
TIDY_SECONDS = 0.1
# Where one round of all variants takes so many times what all rounds should, two have to do.
LONG_ROUND = 3.0
OURS = "slimfast"
BOUND = "bound"
PEAK = "peak bytes"
BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Target:
    """``slimfast`` is to be ``times`` as fast as ``against``; against the bound, to reach that share.

    ``where``: the condition under which; ``seconds``: and to take no longer than that.
    """

    against: str
    times: float
    where: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table as it stands before anything is measured; ``parameters`` are its op's own."""

    name: str
    parameters: tuple[Any, ...]
    targets: tuple[Target, ...] = ()
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that uses up what ``prepare`` makes; only ``run`` is on the clock."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.run(self.prepare())


@dataclass(frozen=True, slots=True)
class Case:
    """What to run for a row.

    ``variants`` maps a name to a function, or to the reason why there is none; ``error`` is a result's
    largest error against float64 relative to the largest value, and above ``limit`` the variant is wrong;
    ``bound`` (seconds) is what the machine's measured rates allow; ``share`` of a variant's work is done
    where all of it takes too long; ``clock`` is what they are timed by.
    """

    variants: Mapping[str, Run | str]
    error: Callable[[Any], float]
    limit: float
    bound: float | None = None
    share: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run: median and the 20th and 80th percentile of ``rounds`` samples."""

    median: float
    p20: float
    p80: float
    rounds: int


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which this share of the samples lies, interpolated linearly."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def summarise(samples: Sequence[float]) -> Timing:
    """Median and spread of samples in seconds."""
    return Timing(quantile(samples, 0.5), quantile(samples, 0.2), quantile(samples, 0.8), len(samples))


def time_in_turn(
    runs: Mapping[str, Run], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time every run in turn, round after round, for about ``seconds`` in all; each is warm already."""
    once = {name: _sample(run, 1, clock) for name, run in runs.items()}
    repeats = {
        name: 1 if isinstance(runs[name], Prepared) else math.ceil(SAMPLE_SECONDS / max(t, 1e-9))
        for name, t in once.items()
    }
    round_seconds = sum(max(t, SAMPLE_SECONDS) for t in once.values())
    least = LEAST_ROUNDS if round_seconds <= LONG_ROUND * seconds else 2
    rounds = max(least, min(MOST_ROUNDS, int(seconds / round_seconds)))
    # A slow run's first sample counts; a fast one's was taken without repeats.
    samples = {name: [t] if repeats[name] == 1 else [] for name, t in once.items()}
    names = list(runs)
    tidy = max(once.values()) >= TIDY_SECONDS
    for number in range(rounds - 1):
        # Whoever goes first pays for what the others left in the caches: each in its turn.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if tidy:
                gc.collect()
            samples[name].append(_sample(runs[name], repeats[name], clock))
    return {name: summarise(values) for name, values in samples.items()}


def _sample(run: Run, repeats: int, clock: Callable[[], float]) -> float:
    if isinstance(run, Prepared):
        made = run.prepare()
        synchronize()
        start = clock()
        run.run(made)
    else:
        synchronize()
        start = clock()
        for _ in range(repeats):
            run()
    synchronize()
    return (clock() - start) / repeats


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(row: Row, case: Case, *, seconds: float) -> dict[str, Any]:
    """A row of results: every variant checked, those that are right timed, times of the whole work.

    A variant has "seconds", or the reason why not: "not measured", "failed" (it raised) or "wrong".
    """
    variants: dict[str, dict[str, Any]] = {}
    correct: dict[str, Run] = {}
    for name, run in case.variants.items():
        if isinstance(run, str):
            variants[name] = {"not measured": run}
            continue
        try:
            error = case.error(run())
        except Exception as failure:
            # Whatever a variant runs into is its result; the others go on.
            variants[name] = {"failed": f"{type(failure).__name__}: {failure}".splitlines()[0]}
            continue
        variants[name] = {"error": error}
        if error <= case.limit:
            correct[name] = run
        else:
            variants[name]["wrong"] = f"error {error:.1e}, at most {case.limit:.0e} is right"
    for name, timing in time_in_turn(correct, seconds=seconds, clock=case.clock).items() if correct else ():
        share = case.share.get(name, 1.0)
        variants[name] |= {
            "seconds": timing.median / share,
            "p20": timing.p20 / share,
            "p80": timing.p80 / share,
            "rounds": timing.rounds,
        }
        if share != 1.0:
            variants[name]["measured share of the work"] = share
    return {"name": row.name, "variants": variants, "bound": case.bound, "facts": dict(case.facts)}


def by_backends(run: Callable[[str], Any], names: Sequence[str]) -> dict[str, Run]:
    """The same by each of these backends, to stand beside what ``auto`` takes."""
    return {name: functools.partial(run, name) for name in names}


def backend_of(op: str, tensors: Sequence[Tensor]) -> dict[str, str]:
    """The backend that ``auto`` takes for these inputs, to stand among a case's facts."""
    return {BACKEND: select_backend(op, tensors).__name__.rpartition(".")[2]}


def kernel_times(run: Run) -> list[dict[str, Any]]:
    """Time of every GPU kernel that one run starts, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        synchronize()
    rows = [
        {"kernel": event.key, "calls": event.count, "seconds": event.device_time_total * 1e-6}
        for event in profiler.key_averages()
        if event.device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row["seconds"])
