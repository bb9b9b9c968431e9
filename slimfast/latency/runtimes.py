"""What runs a network while it is timed: PyTorch as it is, compiled, or ONNX Runtime; and on what machine."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentError, SlimfastError, did_you_mean, one_line
from slimfast.latency.onnx_runtime import onnx_run

Runtime = Literal["torch", "compile", "onnxruntime"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
# Runs a network once on arguments that it holds.
Run: TypeAlias = Callable[[], Any]

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_runtime(runtime: str) -> None:
    """Raise ``ValueError`` for a runtime that is none, and :class:`SlimfastError` for one not installed."""
    if runtime not in RUNTIMES:
        raise ArgumentError(
            f"latency: expected runtime {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}, got {runtime!r}"
            f"{did_you_mean(runtime, RUNTIMES)}"
        )
    missing = [
        name for name in _NEEDED if runtime == "onnxruntime" and importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SlimfastError(
            f"latency: runtime onnxruntime needs {', '.join(missing)}, not installed: "
            "pip install slimfast[onnx]"
        )


def runner(model: nn.Module, given: Arguments, runtime: str, threads: int) -> Run:
    """Make what runs a network once in a runtime; ``model`` is in eval mode and stays on its device.

    Raises :class:`SlimfastError` in one line where the runtime cannot take the network.
    """
    args, kwargs = given
    if runtime == "onnxruntime":
        return onnx_run(model, given, threads)
    if runtime == "compile":
        compiled = torch.compile(model)
        try:
            compiled(*args, **kwargs)
        except Exception as error:
            raise SlimfastError(
                f"latency: torch.compile failed on {type(model).__name__}: {one_line(error)}"
            ) from error
        return lambda: compiled(*args, **kwargs)
    return lambda: model(*args, **kwargs)


def machine_name(device: torch.device) -> str:
    """Name the processor that a device is, with its number of cores where it is this machine's own."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
