"""Where the kernels of ``slimfast._cuda`` run: a device, its memory and streams, or the CPU in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels import native
from slimfast.kernels.backends.contract import host_table


@dataclass(frozen=True, slots=True)
class Device:
    """Where a call runs: the module, the torch device, and the kernels' names for it and the stream."""

    module: ModuleType
    kind: torch.device
    index: int
    stream: int

    @property
    def on(self) -> tuple[int, int]:
        return self.index, self.stream

    @property
    def processors(self) -> int:
        """Multiprocessors of the GPU; of an H100 where it is emulated."""
        if self.kind.type == "cpu":
            return 132
        return torch.cuda.get_device_properties(self.kind).multi_processor_count

    def table(self, numbers: IntArray) -> Tensor:
        """Copy the numbers to the device: one copy, not waited for."""
        host = host_table(len(numbers), self.kind)
        return host.copy_(torch.from_numpy(numbers)).to(self.kind, non_blocking=True)

    def table_of(self, written: Any) -> Tensor:
        """Copy numbers to the device that write themselves to an address."""
        host = host_table(len(written), self.kind)
        written.write(host.data_ptr())
        return host.to(self.kind, non_blocking=True)

    def vectors(self, sizes: list[int], dtypes: list[torch.dtype]) -> list[Tensor]:
        """Allocate vectors of these sizes and types, all of a type in one piece of memory."""
        found: dict[torch.dtype, Iterator[Tensor]] = {}
        for dtype in set(dtypes):
            of_dtype = [size for size, other in zip(sizes, dtypes, strict=True) if other == dtype]
            found[dtype] = iter(torch.split(self.empty(sum(of_dtype), dtype=dtype), of_dtype))
        return [next(found[dtype]) for dtype in dtypes]

    def empty(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.kind)


@contextlib.contextmanager
def device_of(tensor: Tensor) -> Iterator[Device]:
    """Yield the tensor's device, with torch's current stream there."""
    module = native.cuda().module
    assert module is not None, "select_backend asks why_not first"
    if native.cuda_is_emulated():
        yield Device(module, tensor.device, 0, 0)
        return
    with torch.cuda.device(tensor.device):
        stream = torch.cuda.current_stream().cuda_stream
        yield Device(module, tensor.device, torch.cuda.current_device(), stream)


@contextlib.contextmanager
def side_streams(device: Device, count: int) -> Iterator[list[tuple[int, int]]]:
    """Yield ``count`` streams that start after the current one and that it waits for; itself if one will
    do.
    """
    if device.kind.type == "cpu" or count < 2:
        yield [device.on] * count
        return
    current = torch.cuda.current_stream()
    sides = [torch.cuda.Stream() for _ in range(count)]  # type: ignore[no-untyped-call]
    for side in sides:
        side.wait_stream(current)
    try:
        yield [(device.index, side.cuda_stream) for side in sides]
    finally:
        # after an error too: what they work on may be given back to the allocator at once
        for side in sides:
            current.wait_stream(side)
