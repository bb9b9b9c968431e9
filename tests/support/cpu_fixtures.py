"""The instruction sets of the CPU kernels in a test: those of this machine, and the wider ones emulated."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from slimfast.kernels import native


def emulated_module() -> ModuleType | None:
    """``slimfast._cpu_emulated``: the kernels of wider machines, lowered; None where it is not built."""
    try:
        return importlib.import_module("slimfast._cpu_emulated")
    except ImportError:
        return None


def native_isas() -> list[str]:
    """The instruction sets that this machine runs, the widest last."""
    module = native.cpu().module
    return ["baseline"] if module is None else list(module.available_isas())


def emulated_isas() -> list[str]:
    """Those of ``_cpu_emulated`` that are lowered there: all beyond AVX2."""
    module = emulated_module()
    return (
        [] if module is None else [isa for isa in module.available_isas() if isa not in ("baseline", "avx2")]
    )


def use_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend="cpu"`` runs in ``_cpu_emulated``, with the widest of its instruction sets."""
    module = emulated_module()
    if module is None:
        pytest.skip("slimfast._cpu_emulated is not built (-DSLIMFAST_CPU_EMULATION=ON)")
    monkeypatch.setattr(native, "cpu", lambda: native.Native(module, None))


@pytest.fixture(params=[*native_isas(), *(f"{isa} emulated" for isa in emulated_isas())])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set in turn: what ``isa=`` of the CPU backend's functions takes during the test."""
    name, _, emulated = str(request.param).partition(" ")
    if emulated:
        use_emulated(monkeypatch)
    return name


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend="cpu"`` runs the widest text, lowered."""
    use_emulated(monkeypatch)
