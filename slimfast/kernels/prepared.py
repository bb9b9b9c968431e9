"""A call made ready once and launched many times: what a CUDA graph may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from slimfast.errors import SlimfastError

Results = TypeVar("Results")


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Results]):
    """An op whose tables, workspaces and results are in place.

    ``launch()`` starts the kernels on the current stream and does nothing else: no allocation, no copy from
    the host, no wait. They read the inputs from where they were when the call was made ready and write
    ``results`` anew. All of that memory lives as long as this object does: keep it as long as a graph that it
    was captured in, and until its launches are done. A launch on another stream than the one it was made
    ready on waits for that one by the caller's means, as every use of a tensor does.
    """

    results: Results
    launch: Callable[[], None]


def host_table(size: int, device: torch.device) -> Tensor:
    """Return (size,) int64 on the host, from where a copy to ``device`` need not be waited for.

    Raises :class:`SlimfastError` while a graph is captured: every replay would copy from memory that has been
    given away since.
    """
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        raise SlimfastError(
            "graph capture: expected calls made ready before it (slimfast.kernels.prepare_*), got one that "
            "copies tables from the host"
        )
    return torch.empty(size, dtype=torch.int64, pin_memory=on_gpu, device="cpu")
