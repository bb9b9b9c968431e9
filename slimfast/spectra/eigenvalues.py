"""Eigenvalues of many layers through the grouped kernels, a bounded number of bytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.kernels import ops
from slimfast.spectra.unit_matrices import Layer, Part, unit_matrix
from slimfast.weights import Weights

Scaling = Literal["raw", "unit"]
Progress = Callable[[int, int], None]
T = TypeVar("T")

# Bytes of weights that are read, and of row covariances that are formed, in one grouped call.
BATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """How layers are measured.

    ``scaling="unit"`` gives every unit unit variance (the covariance becomes the correlation);
    ``member_scaling`` gives every member of a layer the same total variance. ``on_cpu`` moves the weights
    there.
    """

    dtype: torch.dtype | None = None
    scaling: Scaling = "raw"
    member_scaling: bool = False
    backend: str = "auto"
    on_cpu: bool = False


class Measured(NamedTuple):
    """``eigenvalues`` (m,) ascending, float64 on the CPU; ``dtype`` is that of the arithmetic."""

    layer: Layer
    eigenvalues: Tensor
    trace: float
    dtype: torch.dtype


def measure_layers(layers: Sequence[Layer], weights: Weights, options: Options) -> Iterator[Measured]:
    """Every layer measured, in any order, :data:`BATCH_BYTES` at a time."""
    by_rows = [layer for layer in layers if _by_rows(layer, options)]
    whole = [layer for layer in layers if not _by_rows(layer, options)]
    try:
        yield from _measure_whole(whole, weights, options)
        yield from _measure_by_rows(by_rows, weights, options)
    except ValueError as error:
        # The ops' arguments are all made here, so that what they object to is in the weights.
        raise SlimfastError(f"{weights.source}: {error}") from None


def _by_rows(layer: Layer, options: Options) -> bool:
    """Whether the (n, n) covariances of a layer's members are summed, rather than one matrix measured.

    They are where several members or a scaling allow no view of the weights, and n is the smaller side.
    """
    return layer.n <= layer.d and (len(layer.parts) > 1 or options.scaling == "unit")


def _measure_whole(layers: Sequence[Layer], weights: Weights, options: Options) -> Iterator[Measured]:
    for batch in _batches(layers, [sum(part.bytes for part in layer.parts) for layer in layers]):
        xs = [
            _joined([_load(layer, part, weights, options) for part in layer.parts], options)
            for layer in batch
        ]
        for same in _by_device(xs):
            found = ops.grouped_spectra(
                [xs[i] for i in same],
                dtype=options.dtype,
                names=[batch[i].name for i in same],
                backend=options.backend,
            )
            for i, values, trace in zip(same, found.eigenvalues, found.traces.tolist(), strict=True):
                yield Measured(batch[i], values, trace, _arithmetic(xs[i].dtype, options))


def _joined(members: list[Tensor], options: Options) -> Tensor:
    """One matrix (n, d) of the members side by side, each centred on its own and scaled as asked."""
    if len(members) == 1 and options.scaling == "raw":
        return members[0]
    double = torch.float64 in {options.dtype, *(m.dtype for m in members)}
    samples = max(sum(m.shape[1] for m in members) - 1, 1)
    centred = [m.to(members[0].device, torch.float64) for m in members]
    centred = [m - m.mean(1, keepdim=True) for m in centred]
    if options.member_scaling:
        centred = [m * _inverse_root(m.square().sum() / samples) for m in centred]
    joined = torch.cat(centred, dim=1)
    if options.scaling == "unit":
        joined *= _inverse_root(joined.square().sum(1, keepdim=True) / samples)
    return joined if double else joined.float()


def _measure_by_rows(layers: Sequence[Layer], weights: Weights, options: Options) -> Iterator[Measured]:
    """S = sum over members of (d_member - 1) / (d - 1) times the member's own covariance, in float64."""
    parts = [(layer, part) for layer in layers for part in layer.parts]
    sums: dict[str, tuple[Tensor, set[torch.dtype], int]] = {}
    for batch in _batches(parts, [part.bytes + 8 * layer.n**2 for layer, part in parts]):
        xs = [_load(layer, part, weights, options) for layer, part in batch]
        for same in _by_device(xs):
            found = ops.grouped_covariance(
                [xs[i] for i in same],
                side="rows",
                dtype=options.dtype,
                names=[f"{batch[i][0].name}: {batch[i][1].tensor}" for i in same],
                backend=options.backend,
            )
            for i, matrix in zip(same, found.matrices, strict=True):
                layer, part = batch[i]
                member = matrix.double() * (max(part.d - 1, 1) / max(layer.d - 1, 1))
                if options.member_scaling:
                    member *= _inverse_root(member.trace()).square()
                total, dtypes, count = sums.get(layer.name, (torch.zeros_like(member), set(), 0))
                total += member.to(total.device)
                sums[layer.name] = (total, dtypes | {xs[i].dtype}, count + 1)
        done = [layer for layer in layers if layer.name in sums and sums[layer.name][2] == len(layer.parts)]
        yield from _measure_sums([(layer, *sums.pop(layer.name)[:2]) for layer in done], options)


def _measure_sums(
    items: Sequence[tuple[Layer, Tensor, set[torch.dtype]]], options: Options
) -> Iterator[Measured]:
    mats, traces, dtypes = [], [], []
    for _, total, held in items:
        if options.scaling == "unit":
            inverse = _inverse_root(total.diagonal())
            total = total * inverse * inverse[:, None]
        dtypes.append(_arithmetic(torch.float64 if torch.float64 in held else torch.float32, options))
        traces.append(float(total.trace()))
        mats.append(total.to(dtypes[-1]))
    for same in _by_device(mats):
        values = ops.grouped_eigvalsh(
            [mats[i] for i in same], names=[items[i][0].name for i in same], backend=options.backend
        )
        for i, value in zip(same, values, strict=True):
            yield Measured(items[i][0], value.to("cpu", torch.float64), traces[i], dtypes[i])


def _inverse_root(values: Tensor) -> Tensor:
    """1 / sqrt, and 0 for 0: what has no variance stays without."""
    return torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)


def _arithmetic(dtype: torch.dtype, options: Options) -> torch.dtype:
    return options.dtype or (torch.float64 if dtype == torch.float64 else torch.float32)


def _load(layer: Layer, part: Part, weights: Weights, options: Options) -> Tensor:
    tensor = weights.load(part.tensor)
    x = unit_matrix(tensor.cpu() if options.on_cpu else tensor, part.dim, part.units)
    if tuple(x.shape) != (layer.n, part.d):
        raise SlimfastError(
            f"{weights.source}: {part.tensor}: expected {layer.n} units of {part.d}, got {tuple(x.shape)}"
        )
    return x


def _by_device(xs: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the tensors on each device: a grouped call runs on one."""
    found: dict[torch.device, list[int]] = {}
    for i, x in enumerate(xs):
        found.setdefault(x.device, []).append(i)
    return list(found.values())


def _batches(items: Sequence[T], sizes: Sequence[int]) -> Iterator[list[T]]:
    """The items in order, cut where a batch would exceed ``BATCH_BYTES``; a larger item is a batch of its
    own.
    """
    batch: list[T] = []
    used = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and used + size > BATCH_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size
    if batch:
        yield batch
