"""Find further inputs that a network takes: of another size, and of another batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from slimfast.arrays import Arguments, Shape
from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.forward import ForwardFailed, TensorMode, record_at
from slimfast.graph.recording.inputs import TensorSpec, map_leaves
from slimfast.graph.recording.network import Network

# The length that a dim of a tensor gets, by the number of the tensor among the arguments and the dim.
Lengths: TypeAlias = dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class OtherInputs:
    """Inputs that a network takes beside its example: of another size, another batch, or both."""

    inputs: Arguments
    size: bool
    batch: bool

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of the tensors among the inputs."""
        return tuple(tuple(tensor.shape) for tensor in _tensors(self.inputs))


def other_inputs(network: Network, inputs: Arguments) -> OtherInputs | None:
    """Find inputs of another size (of images, sequences) and another batch that a network's forward takes.

    They are tried on tensors without data, or, where the forward asks for the values of what it computes, on
    real ones: both at once, else each alone. What the example has is cut off, or
    is there once more, so that values stay in their range; further samples are shifted along their last dim.

    Args:
        network: The network.
        inputs: What it is called with.

    Returns:
        The inputs, on the devices of the example; None where the network takes no others.
    """
    modes: tuple[TensorMode, ...] = ("meta", "fake")
    for mode in modes:
        found = _search(inputs, lambda tried, mode=mode: _takes(network, tried, mode))  # type: ignore[misc]
        if found is not None or _takes(network, inputs, mode):
            return found
    if any(tensor.is_meta for tensor in network.tensors.values()):
        return None
    devices = sorted({t.device.index for t in network.tensors.values() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        return _search(inputs, lambda tried: _takes(network, tried, "real"))


def _takes(network: Network, inputs: Arguments, mode: TensorMode) -> bool:
    """Say whether the forward runs on tensors of these shapes."""
    try:
        record_at(network, *inputs, mode)
    except (ForwardFailed, UnsupportedGraph):
        return False
    return True


def _search(inputs: Arguments, takes: Callable[[Arguments], bool]) -> OtherInputs | None:
    """Try another size and batch at once; where that fails, another batch, then other sizes with the batch
    that goes.
    """
    specs = [TensorSpec.of(tensor) for tensor in _tensors(inputs)]
    batch = _batch(specs)
    sizes = [size for dims in _candidates(specs) for size in _lengths(dims, specs)]
    if sizes and batch and takes(both := _changed(inputs, {**sizes[0], **batch})):
        return OtherInputs(both, size=True, batch=True)
    if batch and not takes(_changed(inputs, batch)):
        batch = {}
    for size in sizes:
        if takes(tried := _changed(inputs, {**size, **batch})):
            return OtherInputs(tried, size=True, batch=bool(batch))
    return OtherInputs(_changed(inputs, batch), size=False, batch=True) if batch else None


def _batch(specs: list[TensorSpec]) -> Lengths:
    """Take another length for the first dim of every tensor that has as many samples as the first."""
    samples = next((spec.shape[0] for spec in specs if len(spec.shape) > 1), 0)
    dims = [(i, 0) for i, spec in enumerate(specs) if spec.shape and spec.shape[0] == samples]
    if not samples:
        return {}
    fewer = dict.fromkeys(dims, (samples + 1) // 2)
    return fewer if samples > 2 and _in_range(fewer, specs) else dict.fromkeys(dims, samples + 1)


def _candidates(specs: list[TensorSpec]) -> Iterator[tuple[tuple[int, int], ...]]:
    """List sets of dims that may be a size: first what usually is one, then all dims of one length."""
    dims = [(i, d) for i, spec in enumerate(specs) for d in range(1, len(spec.shape)) if spec.shape[d] > 1]
    usual = tuple((i, d) for i, d in dims if d > 1 or len(specs[i].shape) == 2)
    lengths = sorted({specs[i].shape[d] for i, d in dims}, reverse=True)
    of_length = [tuple((i, d) for i, d in dims if specs[i].shape[d] == n) for n in lengths]
    yield from dict.fromkeys(some for some in (usual, *of_length) if some)


def _lengths(dims: tuple[tuple[int, int], ...], specs: list[TensorSpec]) -> Iterator[Lengths]:
    """Take a smaller length for each of the dims, and a larger one where no position runs out of a table.

    Both are multiples of the power of two that networks which halve and double their positions need.
    """
    old = {dim: specs[dim[0]].shape[dim[1]] for dim in dims}
    smaller = {dim: n - _step(n) * max(1, n // _step(n) // 2) for dim, n in old.items()}
    if all(n > 1 for n in smaller.values()) and _in_range(smaller, specs):
        yield smaller
    if all(specs[i].dtype.is_floating_point for i, _ in dims):
        yield {dim: n + _step(n) for dim, n in old.items()}


def _step(n: int) -> int:
    """Return the largest power of two that divides ``n`` and is at most half of it."""
    power = n & -n
    return power if power < n else power // 2


def _in_range(lengths: Lengths, specs: list[TensorSpec]) -> bool:
    """Say whether no other argument can be an index that would be past the end of one of these dims."""
    changed = {i for i, _ in lengths}
    highest = {spec.high for i, spec in enumerate(specs) if i not in changed}
    return not any(n <= high < specs[i].shape[d] for (i, d), n in lengths.items() for high in highest)


def _tensors(inputs: Arguments) -> list[Tensor]:
    found: list[Tensor] = []
    map_leaves(inputs, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found


def _changed(inputs: Arguments, lengths: Lengths) -> Arguments:
    """Give the tensors among the arguments other lengths."""
    number = iter(range(len(_tensors(inputs))))

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        i, tensor = next(number), leaf.detach()
        for dim in range(tensor.dim()):
            tensor = _resized(tensor, dim, lengths.get((i, dim), tensor.shape[dim]))
        return tensor

    return map_leaves(inputs[0], change), map_leaves(inputs[1], change)


def _resized(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Cut a dim of a tensor off, or repeat what is there; a sample that is repeated is shifted."""
    if length <= tensor.shape[dim]:
        return tensor.narrow(dim, 0, length)
    index = torch.arange(length - tensor.shape[dim], device=tensor.device) % tensor.shape[dim]
    more = tensor.index_select(dim, index)
    return torch.cat([tensor, more.roll(1, -1) if dim == 0 and tensor.dim() > 1 else more], dim)
