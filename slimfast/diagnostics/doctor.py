"""What is built, found and chosen on this machine, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from slimfast.errors import ArgumentError, SlimfastError, one_line
from slimfast.kernels import native
from slimfast.kernels.dispatch import BACKENDS, OPS, select_backend, why_not

# Distributions by the extra that asks for them, as in pyproject.toml.
EXTRAS = {
    "distill": ("accelerate",),
    "plot": ("matplotlib",),
    "report": ("plotly",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "demo": ("scikit-learn",),
    "models": ("timm", "torchvision", "transformers"),
}


@dataclass(frozen=True, slots=True)
class OpStatus:
    """Which backend runs ``op`` on a float32 matrix on ``device``, and every backend's reasons against it.

    ``chosen`` is None where no backend runs, or the one that SLIMFAST_BACKEND names cannot.
    """

    op: str
    device: str
    chosen: str | None
    against: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Facts in the order to show them, the ops, and the optional packages (None: missing) by extra."""

    facts: Mapping[str, str]
    ops: tuple[OpStatus, ...]
    extras: Mapping[str, Mapping[str, str | None]]

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine; nothing is measured, and nothing fails for what is missing."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return Diagnosis(
        facts={
            "slimfast": version("slimfast") or "not installed, run from its source folder",
            "python": f"{platform.python_version()} on {platform.platform()}",
            "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
            "numpy": version("numpy") or "missing",
            "triton": version("triton") or "missing",
            "cpu": f"{os.cpu_count()} logical cores",
            "cpu kernels": _cpu_kernels(),
            "cuda": _cuda_devices(),
            "cuda kernels": _cuda_kernels(),
            "environment": ", ".join(f"{k}={v}" for k, v in sorted(_settings().items())) or "nothing set",
        },
        ops=tuple(_status(op, device) for device in devices for op in OPS),
        extras={extra: {name: version(name) for name in names} for extra, names in EXTRAS.items()},
    )


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _status(op: str, device: str) -> OpStatus:
    try:
        sample = [torch.zeros(2, 2, device=device)]
    # A device can be listed and yet refuse work: in exclusive use, out of memory, a driver too old.
    except RuntimeError as error:
        return OpStatus(op, device, None, {"torch": (one_line(error),)})
    against = {name: tuple(why_not(op, sample, name)) for name in BACKENDS}
    try:
        chosen = select_backend(op, sample).__name__.rpartition(".")[2]
    except (SlimfastError, ArgumentError):
        # SLIMFAST_BACKEND names a backend that cannot run, or none at all; `environment` shows it.
        chosen = None
    return OpStatus(op, device, chosen, against)


def _settings() -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")
    return {k: v for k, v in os.environ.items() if k.startswith("SLIMFAST_") or k in names}


def _cpu_kernels() -> str:
    """Whether they are built, and which of the instruction sets that run here is chosen."""
    loaded = native.cpu()
    if loaded.module is None:
        return loaded.reason or "not built"
    there = ", ".join(loaded.module.available_isas())
    try:
        return f"built, running {loaded.module.isa()} (here: {there}; SLIMFAST_ISA chooses)"
    except ValueError as error:
        return f"built, but {error}"


def _cuda_kernels() -> str:
    loaded = native.cuda()
    if loaded.module is None:
        return loaded.reason or "not built"
    return "built, run on the CPU by SLIMFAST_CUDA_EMULATE=1" if native.cuda_is_emulated() else "built"


def _cuda_devices() -> str:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return f"PyTorch is built for CUDA {torch.version.cuda}, but finds no device or driver"
    names = []
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        names.append(f"{torch.cuda.get_device_name(i)} (sm_{major}{minor})")
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"
