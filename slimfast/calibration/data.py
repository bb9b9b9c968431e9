"""A calibration as data: moments, the inputs they are of, and whether they are those of a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.forward import Slice, count_of, elements_of, slices_of
from slimfast.calibration.kept_rows import KeptRows
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.recording.inputs import tensors_in
from slimfast.storage.long_tensors import rows_at_once
from slimfast.storage.stored_tensors import is_long

# So far may the norms of a layer's weights be from those that were calibrated: more than rounding does.
_SAME_WEIGHTS = 0.02
# What a processor's forward holds at most. Activations beyond its caches cost memory traffic, and tensors
# beyond 32 MiB are new pages at every operation, because the C library gives them back: of a forward of 16
# images that is a tenth to a fifth, of its backward pass a third. Much less makes products too short.
_AT_ONCE = 96 << 20
# Elements of a weight that are converted at once: 32 MiB in float64.
_CONVERTED = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one layer read: ``mean`` (L,) and ``covariance`` (L, L), float64 on the CPU, over ``count``
    positions of all samples; ``norms`` (L,): the norm of the weights it has for each variable. Layers that
    read the same tensor have the same tensors here.
    """

    weight: str
    mean: Tensor
    covariance: Tensor
    norms: Tensor
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What every consumer of a network's channel groups reads, as moments.

    Attributes:
        readings: The moments by the name of the weight that reads.
        left: Why other consumers were not measured.
        batches: The inputs measured, (args, kwargs) each; repair runs the thin network on them.
        samples: How many samples they are in all.
        masks: Of each batch which positions are no padding, None for all; empty where no batch has any.
        bytes_held: The most bytes of activations that a forward held, for each number of its input; 0 where
            that was not measured.
        bytes_made: The bytes of all activations of a forward, likewise.
        rows: What the layers read at the positions that repair looks at, in memory or a temporary file; None
            where that was not kept, as in a calibration that was loaded.

    Example:
        calibration = slimfast.calibrate(model, graph, loader)
        calibration.readings["layer1.0.conv2.weight"].mean
    """

    readings: Mapping[str, Reading]
    left: Mapping[str, str]
    batches: tuple[Arguments, ...]
    samples: int
    masks: tuple[Tensor | None, ...] = ()
    bytes_held: float = 0.0
    bytes_made: float = 0.0
    rows: KeptRows | None = field(default=None, repr=False)

    def slices(self, memory: int) -> Iterator[Slice]:
        """Give the samples in slices whose forwards hold up to ``memory`` bytes each, of neighbours of one
        shape; one sample at least.
        """
        return slices_of(self._masked(), at_most(memory, held=self.bytes_held))

    def slices_for_backward(self, memory: int) -> Iterator[Slice]:
        """Give the samples in slices whose forward and backward passes hold up to ``memory`` bytes each."""
        return slices_of(self._masked(), at_most(memory, held=self.bytes_held, made=self.bytes_made))

    def _masked(self) -> Iterator[tuple[Arguments, Tensor | None]]:
        return zip(self.batches, self.masks or (None,) * len(self.batches), strict=True)


def at_most(memory: int, *, held: float, made: float = 0.0) -> Callable[[Arguments], int]:
    """Make the function that says how many samples of a batch run at once within ``memory`` bytes.

    ``held``: what a forward holds for each number of its input; ``made``: what it makes, where all of that is
    kept for a backward pass. A processor gets no more at once than is good for it.
    """

    def most(batch: Arguments) -> int:
        here = any(tensor.device.type == "cpu" for tensor in tensors_in(batch))
        bounds = ((held, min(memory, _AT_ONCE) if here else memory), (made, memory))
        sizes = [int(bound / (each * elements_of(batch))) for each, bound in bounds if each]
        return max(1, min(sizes, default=count_of(batch)))

    return most


def norms_of_variables(consumer: Consumer, weight: Tensor) -> Tensor:
    """Compute the norm of the weights that a layer has for each variable it reads, (L,) float64, CPU."""
    if is_long(weight) and consumer.dim:
        # Of a head some rows are in memory, never all of them.
        rows = rows_at_once(weight.shape, weight.dtype)
        some = (weight.detach()[start : start + rows] for start in range(0, len(weight), rows))
        return functools.reduce(Tensor.add_, (part.double().square().sum(0) for part in some)).sqrt()
    matrix = consumer.matrix(weight.detach())
    step = max(1, _CONVERTED // max(1, matrix[:, :1].numel()))
    parts: Iterator[Tensor] = (part.double().square().sum((1, 3)) for part in torch.split(matrix, step, 1))
    total: Tensor = functools.reduce(Tensor.add_, parts)
    return total.sqrt().reshape(-1).cpu()


def check_is_calibration(calibration: object) -> None:
    """Refuse what is no calibration, such as the batches of one."""
    if not isinstance(calibration, Calibration):
        raise ArgumentTypeError(
            f"calibration: expected what slimfast.calibrate returns, got {type(calibration).__name__}"
        )


def check_calibration(
    calibration: Calibration, tensors: Mapping[str, Tensor], consumers: Iterable[Consumer]
) -> None:
    """Refuse a calibration of another model: of other layers, other widths, or other weights.

    ``tensors``: the model's, as its layers compute with them.
    """
    check_is_calibration(calibration)
    known = {consumer.weight: consumer for consumer in consumers}
    for name, reading in calibration.readings.items():
        consumer = known.get(name)
        if consumer is None:
            if name in tensors and tensors[name].dim() > 1:
                # The graph was traced with other options, which leave this layer out.
                continue
            raise SlimfastError(f"calibration: expected layers of this model, got {name}; calibrate it")
        if consumer.length != len(reading.mean):
            raise SlimfastError(
                f"calibration: {name}: expected {consumer.length} variables, got {len(reading.mean)}; "
                f"it is of another model: calibrate this one"
            )
        weight = tensors[name]
        if not weight.is_meta:
            norms = norms_of_variables(consumer, weight)
            off = float((norms - reading.norms).norm()) / (float(reading.norms.norm()) or 1.0)
            if off > _SAME_WEIGHTS:
                raise SlimfastError(
                    f"calibration: {name}: expected the weights that were calibrated, got others, whose "
                    f"norms are off by {off:.0%}; calibrate this model"
                )
