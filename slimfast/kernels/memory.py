"""How many bytes of layers a grouped call takes at a time, where the device decides it.

A GPU is full only with many large matrices at a time: each keeps one of its 132 multiprocessors or so busy.
So a call there takes a third of the memory that is free: a float64 matrix needs up to twice what is counted
(8 bytes an entry, its reduction's workspace included), and what is left is for the weights' copies, partial
sums and other users of the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# One part in so many of what is free.
GPU_SHARE = 3
# More than about 250 matrices of 4096 rows end no sooner together than in two calls.
MOST_GPU_BYTES = 32 << 30


def free_bytes(device: torch.device) -> int | None:
    """Ask what tensors can still take on a GPU: the driver's free memory, and what PyTorch holds unused; None
    elsewhere.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def call_bytes(device: torch.device, elsewhere: int) -> int:
    """Choose how many bytes a call's layers may take on a GPU: a third of what is free now, at most
    :data:`MOST_GPU_BYTES`; on other devices ``elsewhere``.

    A layer's result does not depend on it. One larger layer still runs, alone.
    """
    free = free_bytes(device)
    return elsewhere if free is None else min(free // GPU_SHARE, MOST_GPU_BYTES)


def batches_within(sizes: Sequence[int], workspace_bytes: int) -> list[list[int]]:
    """Sort the matrices of these sizes into batches, biggest first, cut where the float64 workspace would be
    exceeded.
    """
    batches: list[list[int]] = []
    used = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        need = 8 * sizes[i] * sizes[i]
        if not batches or used + need > workspace_bytes:
            batches.append([])
            used = 0
        batches[-1].append(i)
        used += need
    return batches
