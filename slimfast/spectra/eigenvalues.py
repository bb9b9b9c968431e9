"""Eigenvalues of many layers through the grouped kernels, a bounded number of bytes at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from slimfast.errors import NonFinite, SlimfastError
from slimfast.kernels import ops
from slimfast.kernels.dtypes import FLOATING
from slimfast.kernels.memory import call_bytes
from slimfast.spectra.unit_matrices import Layer, Part, unit_matrix
from slimfast.storage.prefetch import read_ahead
from slimfast.storage.weights import Weights

Scaling = Literal["raw", "unit"]
T = TypeVar("T")

# Bytes of weights that are read, and of float64 covariances that could be formed, in one grouped call on a
# CPU; and of a layer of several members that is measured in one pass, on any device.
BATCH_BYTES = 256 << 20
# Elements of a block of units that is centred and scaled in float64 at once, where that many are needed.
_BLOCK_ELEMENTS = 8 << 20


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


def measure_layers(
    layers: Sequence[Layer],
    weights: Weights,
    options: Options,
    *,
    seen: dict[str, str] | None = None,
) -> Iterator[Measured]:
    """Measure every layer, in any order, while the next are read: :data:`BATCH_BYTES` at a time, on a GPU as
    many as :func:`slimfast.kernels.memory.call_bytes` says.

    ``seen`` receives the fingerprints of a layer's tensors before the layer is given out.
    """
    as_is = [layer for layer in layers if _is_measured_as_it_is(layer, options)]
    summed = [layer for layer in layers if not _is_measured_as_it_is(layer, options)]
    try:
        yield from _measure_as_they_are(as_is, weights, options, seen)
        yield from _measure_by_columns([x for x in summed if x.n > x.d], weights, options, seen)
        yield from _measure_by_rows([x for x in summed if x.n <= x.d], weights, options, seen)
    except NonFinite as error:
        raise SlimfastError(f"{weights.source}: {error}") from None


def _is_measured_as_it_is(layer: Layer, options: Options) -> bool:
    """Whether the grouped ops take the layer's members side by side; a question to the layer alone, so that
    its bits do not depend on its neighbours.
    """
    if options.scaling != "raw":
        return False
    if len(layer.parts) == 1:
        return True
    return layer.n <= layer.d and not options.member_scaling and _size(layer) <= BATCH_BYTES


def _measure_as_they_are(
    layers: Sequence[Layer], weights: Weights, options: Options, seen: dict[str, str] | None
) -> Iterator[Measured]:
    """Measure views of the weights: layers of one member, and sums of several in one pass."""
    for batch in read_ahead(_batches(layers, weights, options), weights, _tensors_of_layers, seen=seen):
        xs = [_members(layer, weights, options) for layer in batch]
        found = ops.grouped_spectra(
            xs, dtype=options.dtype, names=[_names(layer) for layer in batch], backend=options.backend
        )
        for layer, members, values, trace in zip(
            batch, xs, found.eigenvalues, found.traces.tolist(), strict=True
        ):
            yield Measured(layer, values, trace, _arithmetic({x.dtype for x in members}, options))
        # Copies of the weights must not live on while the next batch's are made.
        del xs, members


def _members(layer: Layer, weights: Weights, options: Options) -> list[Tensor]:
    """Read the layer's members, on the device of the first."""
    members = [_load(layer, part, weights, options) for part in layer.parts]
    return [member.to(members[0].device) for member in members]


def _names(layer: Layer) -> str | list[str]:
    if len(layer.parts) == 1:
        return layer.name
    return [f"{layer.name}: {part.tensor}" for part in layer.parts]


def _measure_by_columns(
    layers: Sequence[Layer], weights: Weights, options: Options, seen: dict[str, str] | None
) -> Iterator[Measured]:
    """Measure Xc^T Xc / (d - 1), the smaller side where n > d, summed over blocks of the units."""
    for batch in read_ahead(_batches(layers, weights, options), weights, _tensors_of_layers, seen=seen):
        items = [(layer, *_by_columns(layer, weights, options)) for layer in batch]
        # The units' scale is in the sums.
        yield from _measure_sums(items, dataclasses.replace(options, scaling="raw"))


def _by_columns(layer: Layer, weights: Weights, options: Options) -> tuple[Tensor, set[torch.dtype]]:
    members = _members(layer, weights, options)
    dtypes = {member.dtype for member in members}
    blocks = _blocks(layer)
    samples = max(layer.d - 1, 1)
    scales = [torch.ones((), dtype=torch.float64, device=members[0].device) for _ in members]
    if options.member_scaling:
        scales = [
            _inverse_root(torch.stack([_centred(m[a:b]).square().sum() for a, b in blocks]).sum() / samples)
            for m in members
        ]
    total = torch.zeros(layer.d, layer.d, dtype=torch.float64, device=members[0].device)
    for first, last in blocks:
        x = torch.cat([_centred(m[first:last]) * scale for m, scale in zip(members, scales, strict=True)], 1)
        if options.scaling == "unit":
            x *= _inverse_root(x.square().sum(1, keepdim=True) / samples)
        _add_gram(total, x, options, double=torch.float64 in {options.dtype, *dtypes}, name=layer.name)
    return total.div_(samples), dtypes


def _add_gram(total: Tensor, x: Tensor, options: Options, *, double: bool, name: str) -> None:
    """Add x^T x to the total, by way of the covariance of x's columns over its r rows: x^T x = (r - 1) cov +
    r mean mean^T.

    In place: the matrix may be most of what fits in memory.
    """
    rows, mean = len(x), x.mean(0)
    columns = (x if double else x.float()).T
    found = ops.grouped_covariance(
        [columns], side="rows", dtype=options.dtype, names=[name], backend=options.backend
    )
    total.add_(found.matrices[0], alpha=max(rows - 1, 1))
    total.addr_(mean, mean, alpha=rows)


def _blocks(layer: Layer) -> list[tuple[int, int]]:
    """List ranges of the units, of nearly the same size, that hold up to :data:`_BLOCK_ELEMENTS`."""
    count = min(layer.n, -(-layer.n * layer.d // _BLOCK_ELEMENTS))
    ends = [layer.n * (i + 1) // count for i in range(count)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _centred(rows: Tensor) -> Tensor:
    double = rows.to(torch.float64)
    return double - double.mean(1, keepdim=True)


def _size(layer: Layer) -> int:
    return sum(part.bytes for part in layer.parts) + 8 * min(layer.n, layer.d) ** 2


def _tensors_of_layers(batch: Sequence[Layer]) -> list[str]:
    return [part.tensor for layer in batch for part in layer.parts]


def _tensors_of_parts(batch: Sequence[tuple[Layer, Part]]) -> list[str]:
    return [part.tensor for _, part in batch]


def _measure_by_rows(
    layers: Sequence[Layer], weights: Weights, options: Options, seen: dict[str, str] | None
) -> Iterator[Measured]:
    """Measure S = sum over members of (d_member - 1) / (d - 1) times the member's own covariance, in
    float64.
    """
    parts = [(layer, part) for layer in layers for part in layer.parts]
    sums: dict[str, tuple[Tensor, set[torch.dtype], int]] = {}
    sizes = [part.bytes + 8 * layer.n**2 for layer, part in parts]
    batches = _cut(parts, sizes, [_device(part, weights, options) for _, part in parts])
    for batch in read_ahead(batches, weights, _tensors_of_parts, seen=seen):
        xs = [_load(layer, part, weights, options) for layer, part in batch]
        found = ops.grouped_covariance(
            xs,
            side="rows",
            dtype=options.dtype,
            names=[f"{layer.name}: {part.tensor}" for layer, part in batch],
            backend=options.backend,
        )
        for (layer, part), x, matrix in zip(batch, xs, found.matrices, strict=True):
            share = max(part.d - 1, 1) / max(layer.d - 1, 1)
            if options.member_scaling:
                variance = matrix.diagonal().sum(dtype=torch.float64) * share
                share *= float(_inverse_root(variance)) ** 2
            if layer.name not in sums:
                sums[layer.name] = torch.zeros_like(matrix, dtype=torch.float64), set(), 0
            total, dtypes, count = sums[layer.name]
            total.add_(matrix.to(total.device), alpha=share)
            sums[layer.name] = (total, dtypes | {x.dtype}, count + 1)
        del xs, x, found, matrix, total
        done = [layer for layer in layers if layer.name in sums and sums[layer.name][2] == len(layer.parts)]
        yield from _measure_sums([(layer, *sums.pop(layer.name)[:2]) for layer in done], options)


def _measure_sums(
    items: list[tuple[Layer, Tensor, set[torch.dtype]]], options: Options
) -> Iterator[Measured]:
    """Measure float64 sums; ``items`` is emptied, so that a sum goes as soon as it is rounded."""
    layers = [layer for layer, _, _ in items]
    mats, traces, dtypes = [], [], []
    while items:
        _, total, held = items.pop(0)
        if options.scaling == "unit":
            inverse = _inverse_root(total.diagonal())
            total = total * inverse * inverse[:, None]
        dtypes.append(_arithmetic(held, options))
        traces.append(float(total.trace()))
        mats.append(total.to(dtypes[-1]))
        del total
    for same in _by_device(mats):
        values = ops.grouped_eigvalsh(
            [mats[i] for i in same], names=[layers[i].name for i in same], backend=options.backend
        )
        for i, value in zip(same, values, strict=True):
            yield Measured(layers[i], value.to("cpu", torch.float64), traces[i], dtypes[i])


def _inverse_root(values: Tensor) -> Tensor:
    """Compute 1 / sqrt, and 0 for 0: what has no variance stays without."""
    return torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)


def _arithmetic(held: set[torch.dtype], options: Options) -> torch.dtype:
    return options.dtype or (torch.float64 if torch.float64 in held else torch.float32)


def _load(layer: Layer, part: Part, weights: Weights, options: Options) -> Tensor:
    tensor = weights.load(part.tensor)
    x = unit_matrix(tensor.cpu() if options.on_cpu else tensor, part.dim, part.units)
    if tuple(x.shape) != (layer.n, part.d):
        raise SlimfastError(
            f"{weights.source}: {part.tensor}: expected {layer.n} units of {part.d}, got {tuple(x.shape)}"
        )
    if x.dtype not in FLOATING:
        raise SlimfastError(
            f"{weights.source}: {part.tensor}: expected float32, float64, bfloat16 or float16, got {x.dtype}"
        )
    return x


def _by_device(xs: Sequence[Tensor]) -> list[list[int]]:
    """Sort the indices of the tensors by device: a grouped call runs on one."""
    found: dict[torch.device, list[int]] = {}
    for i, x in enumerate(xs):
        found.setdefault(x.device, []).append(i)
    return list(found.values())


def _batches(layers: Sequence[Layer], weights: Weights, options: Options) -> list[list[Layer]]:
    """Choose the layers of each call; a layer is measured where its first member is."""
    devices = [_device(layer.parts[0], weights, options) for layer in layers]
    return _cut(layers, [_size(layer) for layer in layers], devices)


def _device(part: Part, weights: Weights, options: Options) -> torch.device:
    return torch.device("cpu") if options.on_cpu else weights.infos[part.tensor].device


def _cut(items: Sequence[T], sizes: Sequence[int], devices: Sequence[torch.device]) -> list[list[T]]:
    """Cut the items, in order and one device after another, where a batch would exceed what a call on its
    device may take; a larger item is a batch of its own.
    """
    batches: list[list[T]] = []
    for device in dict.fromkeys(devices):
        most = used = call_bytes(device, BATCH_BYTES)
        for item, size, where in zip(items, sizes, devices, strict=True):
            if where != device:
                continue
            if used + size > most:
                batches.append([])
                used = 0
            batches[-1].append(item)
            used += size
    return batches
