"""The peak memory of one forward of a network, measured by the allocator."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.inputs import arguments, map_tensors, tensors_in
from slimfast.graph.recording.network import Network
from slimfast.memory.gauges import gauge_of, running
from slimfast.wrappers import unwrapped


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The bytes that one forward of a network needs at once.

    Attributes:
        weights: Those of its parameters and buffers, each memory once.
        inputs: Those of what it is called with, which stays in memory meanwhile.
        activations: The most that the forward holds at once beside them, what its operations work with
            included.
        device: Where it was measured.
        batch: The length of the first axis of the first input.

    Example:
        print(slimfast.peak_memory(model, example).total)
    """

    weights: int
    inputs: int
    activations: int
    device: str
    batch: int

    @property
    def total(self) -> int:
        """All of it: the peak."""
        return self.weights + self.inputs + self.activations

    def __str__(self) -> str:
        return (
            f"{bytes_text(self.total)} at the peak: weights {bytes_text(self.weights)}, inputs "
            f"{bytes_text(self.inputs)}, activations {bytes_text(self.activations)} (batch {self.batch}, "
            f"on {self.device})"
        )


def bytes_text(count: float) -> str:
    """Write a number of bytes in three digits and its unit: 1536000 -> 1.54 MB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * size:
            number = count / size
            return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
    return f"{count:.0f} bytes"


def peak_memory(model: nn.Module, example: Any, *, device: str | torch.device | None = None) -> PeakMemory:
    """Measure how many bytes one forward of a network needs at once: weights and live activations.

    The network runs in eval mode without gradients, once to warm up and once under the allocator's own count:
    on the CPU the events that it gives to PyTorch's profiler, on a GPU ``torch.cuda.max_memory_allocated``,
    whose peak is set back. What Python holds counts as long as it is held, so a compiled network needs less.
    The network is as it was afterwards.

    Args:
        model: The network.
        example: A tensor, a tuple or a dict of its arguments.
        device: Where to run; where the network is unless given. The network itself stays where it is.

    Returns:
        The bytes, of the weights, the inputs and the activations.

    Raises:
        SlimfastError: For a forward that fails, for weights without data, for another device than the CPU and
            CUDA, and while another profiler runs.

    Example:
        thin = slimfast.prune_channels(model, plan)
        print(slimfast.peak_memory(thin, example).total / slimfast.peak_memory(model, example).total)
    """
    model = unwrapped(model)
    given = arguments(example)
    where = torch.device(device) if device is not None else device_of(model, given)
    if device is not None:
        model = copy.deepcopy(model).to(where)
    network = Network.of(model)
    held = held_tensors(network)
    if where.type == "meta" or any(tensor.is_meta for tensor in held):
        raise SlimfastError(
            "memory: expected weights with data, got some on the meta device; build the network with them"
        )
    args, kwargs = map_tensors(given, lambda tensor: tensor.detach().to(where))
    gauge = gauge_of(where)
    with in_eval(model):
        run_once(model, (args, kwargs))
        with running(gauge):
            run_once(model, (args, kwargs))
            gauge.mark()
    weights = storage_bytes(held)
    inputs = storage_bytes([*held, *tensors_in((args, kwargs))]) - weights
    first = next(iter(tensors_in((args, kwargs))), None)
    return PeakMemory(
        weights=weights,
        inputs=inputs,
        activations=max(gauge.levels[0].most, 0),
        device=str(where),
        batch=first.shape[0] if first is not None and first.ndim else 1,
    )


def run_once(model: nn.Module, given: Arguments) -> None:
    """Run a forward and let go of what it returns; :class:`SlimfastError` in one line where it fails."""
    args, kwargs = given
    try:
        model(*args, **kwargs)
    except SlimfastError:
        raise
    except Exception as error:
        raise SlimfastError(f"memory: the forward failed: {one_line(error)}") from error


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Have a network in eval mode and no gradients meanwhile."""
    training = [(module, module.training) for module in model.modules()]
    for module, _ in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training:
            module.training = was


def held_tensors(network: Network) -> list[Tensor]:
    """List what a network holds: parameters, buffers, and tensors that are plain attributes."""
    return [*network.tensors.values(), *(tensor for _, tensor in network.plain_tensors())]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of the memory of tensors; what several of them share counts once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def device_of(model: nn.Module, given: Any) -> torch.device:
    """Find where a network runs: where its first parameter or buffer is, or what it is given."""
    for tensors in (model.parameters(), model.buffers(), tensors_in(given)):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")
