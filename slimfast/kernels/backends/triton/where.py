"""Where Triton's kernels run: a GPU, or the CPU under the interpreter."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1`` asks for kernels that run on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launch on this device, on its current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
