"""Where CUDA kernels run in a test: on the emulation with its controls, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from slimfast import _native

SHARED_BYTES = 227 << 10


@pytest.fixture(params=["emulated", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the tensors of a test live; ``backend="cuda"`` then runs on the emulated or the real device."""
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "1" if request.param == "emulated" else "0")
    _native.cuda.cache_clear()
    native = _native.cuda()
    if native.module is None:
        pytest.skip(f"{native.reason} (build with -DSLIMFAST_CUDA_EMULATION=ON)")
    yield "cpu" if request.param == "emulated" else "cuda"
    _native.cuda.cache_clear()


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulated module with its controls, which are put back afterwards."""
    monkeypatch.setenv("SLIMFAST_CUDA_EMULATE", "1")
    _native.cuda.cache_clear()
    native = _native.cuda()
    if native.module is None:
        pytest.skip(f"{native.reason} (build with -DSLIMFAST_CUDA_EMULATION=ON)")
    yield native.module
    native.module.set_order("forward")
    native.module.skip_barrier("")
    native.module.set_device(SHARED_BYTES, True)
    _native.cuda.cache_clear()
