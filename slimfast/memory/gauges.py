"""Gauges: what an allocator of PyTorch hands out while something runs, and how much of it at once.

On the CPU the allocator tells PyTorch's profiler of every allocation; the events of the older of its two
profilers come in their order, from the thread that asked for the memory. On a GPU the allocator counts
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd.profiler import record_function

from slimfast.errors import SlimfastError, one_line

_MARK = "slimfast.memory"


class Level(NamedTuple):
    """Bytes between one mark and the next, beside what was there before all of them.

    The most that were there when some were taken, and those at the end.
    """

    most: int
    end: int


class Gauge(Protocol):
    """Counts bytes while it runs; ``levels`` afterwards, one for each mark."""

    levels: list[Level]

    def mark(self) -> None:
        """End a stretch, and begin the next."""


def gauge_of(device: torch.device) -> Gauge:
    """Choose the gauge of a device; :class:`SlimfastError` where its allocator tells nothing."""
    if device.type == "cpu":
        return CpuGauge()
    if device.type == "cuda":
        return CudaGauge(device)
    raise SlimfastError(f"memory: expected a network on the cpu or on cuda, got one on {device}")


@contextmanager
def running(gauge: Gauge) -> Iterator[None]:
    """Have a gauge count meanwhile."""
    assert isinstance(gauge, (CpuGauge, CudaGauge))
    gauge.start()
    try:
        yield
    finally:
        gauge.stop()


@dataclass(slots=True)
class CpuGauge:
    """Counts by the events of the CPU's allocator."""

    levels: list[Level] = field(default_factory=list)

    def start(self) -> None:
        """Begin to count."""
        from torch._C import _profiler

        config = _profiler.ProfilerConfig(
            _profiler.ProfilerState.CPU, False, True, False, False, False, _profiler._ExperimentalConfig()
        )
        try:
            torch._C._autograd._enable_profiler_legacy(config)
        except RuntimeError as error:
            raise SlimfastError(
                f"memory: expected no other profiler to run meanwhile: {one_line(error)}"
            ) from None
        self.mark()

    def mark(self) -> None:
        """End a stretch, and begin the next."""
        with record_function(_MARK):
            pass

    def stop(self) -> None:
        """End the count; what is after the last mark is not looked at."""
        threads: Any = torch._C._autograd._disable_profiler_legacy()
        now, begun = 0, False
        most: int | None = None
        for event in next(filter(_has_marks, threads)):
            kind = event.kind()
            if kind == "memory_alloc":
                now += event.cpu_memory_usage()
                # What is given back before something is taken belongs to what was there before.
                if event.cpu_memory_usage() > 0:
                    most = now if most is None else max(most, now)
            elif kind == "push" and event.name() == _MARK:
                if begun:
                    self.levels.append(Level(now if most is None else most, now))
                begun, most = True, None


def _has_marks(events: Any) -> bool:
    return any(event.kind() == "push" and event.name() == _MARK for event in events)


@dataclass(slots=True)
class CudaGauge:
    """Counts by the counters of a GPU's allocator, whose peak it sets back."""

    device: torch.device
    levels: list[Level] = field(default_factory=list)
    before: int = 0

    def start(self) -> None:
        """Begin to count."""
        torch.cuda.synchronize(self.device)
        self.before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    def mark(self) -> None:
        """End a stretch, and begin the next."""
        most = torch.cuda.max_memory_allocated(self.device) - self.before
        now = torch.cuda.memory_allocated(self.device) - self.before
        begun = self.levels[-1].end if self.levels else 0
        # What was given back before something was taken belongs to what was there before.
        self.levels.append(Level(most if most > begun else now, now))
        torch.cuda.reset_peak_memory_stats(self.device)

    def stop(self) -> None:
        """End the count."""
        torch.cuda.synchronize(self.device)
