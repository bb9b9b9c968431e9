"""Where CUDA kernels run in a test: on the emulation with its controls, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from slimfast.kernels import native

SHARED_BYTES = 227 << 10


@pytest.fixture(
    params=["emulated", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the tensors of a test live; ``backend="cuda"`` then runs on the emulated or the real device."""
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "1" if request.param == "emulated" else "0")
    native.cuda.cache_clear()
    loaded = native.cuda()
    if loaded.module is None:
        pytest.skip(f"{loaded.reason} (build with -DSLIMFAST_CUDA_EMULATION=ON)")
    yield "cpu" if request.param == "emulated" else "cuda"
    native.cuda.cache_clear()


@pytest.fixture(params=["reference", "cpu", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend that runs the ops of moments and solves on CPU tensors, "cuda" in the emulation."""
    if request.param != "cuda":
        yield request.param
        return
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "1")
    native.cuda.cache_clear()
    loaded = native.cuda()
    if loaded.module is None:
        pytest.skip(f"{loaded.reason} (build with -DSLIMFAST_CUDA_EMULATION=ON)")
    yield "cuda"
    native.cuda.cache_clear()


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulated module with its controls, which are put back afterwards."""
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "1")
    native.cuda.cache_clear()
    loaded = native.cuda()
    if loaded.module is None:
        pytest.skip(f"{loaded.reason} (build with -DSLIMFAST_CUDA_EMULATION=ON)")
    yield loaded.module
    loaded.module.set_order("forward")
    loaded.module.skip_barrier("")
    loaded.module.set_device(SHARED_BYTES, True)
    native.cuda.cache_clear()


Run = Callable[[ModuleType], list[Tensor]]
ORDERS: tuple[tuple[Any, ...], ...] = (("reverse",), ("shuffled", 1), ("shuffled", 2))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether the tensors are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_independent_of_the_order(emulator: ModuleType, run: Run) -> None:
    """Whatever the order in which threads and blocks run, the results are the same."""
    forward = run(emulator)
    for order in ORDERS:
        emulator.set_order(*order)
        assert same(run(emulator), forward), order


def barriers_not_needed(emulator: ModuleType, run: Run) -> list[str]:
    """The barriers that ``run`` meets and that can be left out without any order of threads showing it."""
    emulator.take_barrier_sites()
    right = run(emulator)
    sites = emulator.take_barrier_sites()
    assert sites
    unseen = []
    for site in sites:
        emulator.skip_barrier(site)
        if not _is_seen(emulator, run, right):
            unseen.append(site)
    return unseen


def _is_seen(emulator: ModuleType, run: Run, right: list[Tensor]) -> bool:
    """Whether some order of the threads gives other results than the right ones, or none at all."""
    for order in (*ORDERS, ("forward",)):
        emulator.set_order(*order)
        try:
            if not same(run(emulator), right):
                return True
        except (ValueError, RuntimeError):
            return True
    return False
