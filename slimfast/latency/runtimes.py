"""What runs a network while it is timed: PyTorch as it is, compiled, or ONNX Runtime; and on what machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentError, SlimfastError, did_you_mean, one_line
from slimfast.graph.recording.inputs import tensors_in

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
        return _in_onnx_runtime(model, given, threads)
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


def _in_onnx_runtime(model: nn.Module, given: Arguments, threads: int) -> Run:
    import onnxruntime

    args, kwargs = given
    try:
        with quiet_about_torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
        assert written is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            written.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise SlimfastError(
            f"latency: ONNX Runtime cannot take {type(model).__name__}: {one_line(error)}"
        ) from error
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors_in((args, kwargs))]
    # an input that the network does not read is not in the file
    names = [value.name for value in session.get_inputs()]
    feed = dict(zip(names, arrays, strict=len(names) == len(arrays)))
    return lambda: session.run(None, feed)


@contextmanager
def quiet_about_torchvision() -> Iterator[None]:
    """Drop PyTorch's warnings that torchvision is not installed, which come with every network (2.13).

    Its exporter looks up the operators of torchvision before it looks at the network, and a network that was
    captured without torchvision has none of them.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


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
