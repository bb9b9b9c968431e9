"""What the grouped ops ask of their arguments, once, before a backend runs; each message names its layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slimfast.errors import ArgumentError
from slimfast.kernels.dtypes import COMPUTED, FLOATING

# Elements that are looked at together.
_PART = 1 << 20
# Tensors of up to so many elements are copied to one place rather than summed one by one.
_SMALL = 1 << 12


class _Numbered(Sequence[str]):
    """The names of layers that have none, made when one is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return f"layer {range(self._count)[index]}"


def names_of(op: str, tensors: Sequence[Tensor] | Tensor, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return _Numbered(len(tensors))
    if len(names) != len(tensors):
        raise ArgumentError(f"{op}: expected {len(tensors)} names, got {len(names)}")
    return names


def members_of(
    op: str,
    xs: Sequence[Tensor | Sequence[Tensor]],
    names: Sequence[str | Sequence[str]] | None,
) -> tuple[list[list[Tensor]], list[list[str]]]:
    """Check the members of every layer, and list them and their names: a tensor is a layer of one member."""
    if names is not None and len(names) != len(xs):
        raise ArgumentError(f"{op}: expected {len(xs)} names, got {len(names)}")
    layers, named = [], []
    for i, x in enumerate(xs):
        name = f"layer {i}" if names is None else names[i]
        members = [x] if isinstance(x, Tensor) else list(x)
        if not isinstance(name, str):
            told = list(name)
        elif len(members) == 1:
            told = [name]
        else:
            told = [f"{name}, member {j}" for j in range(len(members))]
        if not members or len(told) != len(members):
            raise ArgumentError(
                f"{op}: expected one or more members, each named, got {len(members)} ({name})"
            )
        for member, own in zip(members, told, strict=True):
            check_matrix(op, member, own)
            if member.shape[0] != members[0].shape[0]:
                raise ArgumentError(
                    f"{op}: expected members of {members[0].shape[0]} rows, got {member.shape[0]} ({own})"
                )
        layers.append(members)
        named.append(told)
    return layers, named


def check_matrix(op: str, x: Tensor, name: str) -> None:
    if x.ndim != 2 or 0 in x.shape:
        raise ArgumentError(f"{op}: expected shape (n, d) with n, d >= 1, got {tuple(x.shape)} ({name})")
    if x.dtype not in FLOATING:
        raise ArgumentError(f"{op}: expected float32, float64, bfloat16 or float16, got {x.dtype} ({name})")


def check_covariance_options(side: str, dtype: torch.dtype | None) -> None:
    if side not in ("auto", "rows"):
        raise ArgumentError(f"covariance: expected side 'auto' or 'rows', got {side!r}")
    if dtype not in (None, *COMPUTED):
        raise ArgumentError(f"covariance: expected dtype float32 or float64, got {dtype}")


def covariance_dtype(members: Sequence[Tensor]) -> torch.dtype:
    """Choose what the covariance of a layer's members is in where nothing is asked for."""
    return torch.float64 if any(x.dtype == torch.float64 for x in members) else torch.float32


def check_squares(op: str, mats: Sequence[Tensor], names: Sequence[str]) -> None:
    # Many small matrices come here: a look at each is all the time that they have.
    for i, mat in enumerate(mats):
        shape = mat.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
            raise ArgumentError(f"{op}: expected a square matrix, got shape {tuple(shape)} ({names[i]})")
        if mat.dtype not in COMPUTED:
            raise ArgumentError(f"{op}: expected float32 or float64, got {mat.dtype} ({names[i]})")


def check_ranks(mats: Sequence[Tensor], ranks: Sequence[int], names: Sequence[str]) -> None:
    """Check the matrices of a pivoted Cholesky, and how many picks of each."""
    if len(ranks) != len(mats):
        raise ArgumentError(f"pivoted_cholesky: expected {len(mats)} ranks, got {len(ranks)}")
    check_squares("pivoted_cholesky", mats, names)
    for mat, rank, name in zip(mats, ranks, names, strict=True):
        if not 0 <= rank <= mat.shape[0]:
            raise ArgumentError(
                f"pivoted_cholesky: expected a rank in 0..{mat.shape[0]}, got {rank} ({name})"
            )


def check_one_device(op: str, tensors: Sequence[Tensor]) -> None:
    if all(t.is_cpu for t in tensors):
        return
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise ArgumentError(
            f"{op}: expected tensors on one device, got {', '.join(sorted(map(str, devices)))}"
        )


class _Kept(NamedTuple):
    low: int
    high: int
    rising: bool


def check_gather(
    tensors: Sequence[Tensor], keeps: Sequence[Mapping[int, Tensor]], names: Sequence[str] | None
) -> None:
    named = names_of("gather", tensors, names)
    if len(keeps) != len(tensors):
        raise ArgumentError(f"gather: expected {len(tensors)} keeps, got {len(keeps)}")
    # A group's indices cut many tensors: each is looked through once.
    looked: dict[int, _Kept] = {}
    for tensor, keep, name in zip(tensors, keeps, named, strict=True):
        if len(keep) > 2:
            raise ArgumentError(f"gather: expected at most two dims, got {sorted(keep)} ({name})")
        for dim, index in keep.items():
            if id(index) not in looked:
                looked[id(index)] = _look_through(index, dim, name)
            _check_keep(tensor, dim, looked[id(index)], name)
    check_one_device("gather", tensors)


def _look_through(index: Tensor, dim: int, name: str) -> _Kept:
    if index.dtype != torch.int64 or index.ndim != 1 or index.device.type != "cpu":
        raise ArgumentError(
            f"gather: expected one-dimensional int64 indices on the CPU, got {index.dtype} of shape "
            f"{tuple(index.shape)} on {index.device} ({name}, dim {dim})"
        )
    values = index.numpy()
    if len(values) == 0:
        return _Kept(0, -1, True)
    return _Kept(int(values[0]), int(values[-1]), bool((values[1:] > values[:-1]).all()))


def _check_keep(tensor: Tensor, dim: int, kept: _Kept, name: str) -> None:
    if not 0 <= dim < tensor.ndim:
        raise ArgumentError(f"gather: expected a dim in 0..{tensor.ndim - 1}, got {dim} ({name})")
    length = tensor.shape[dim]
    if kept.low < 0 or kept.high >= length or not kept.rising:
        raise ArgumentError(
            f"gather: expected sorted, distinct indices in 0..{length - 1}, got {kept.low}..{kept.high} "
            f"({name}, dim {dim})"
        )


def all_finite(parts: Sequence[Tensor]) -> bool:
    """Say whether all values of these are finite and so is their sum, in one look; small ones are summed
    together.

    False may also be said of values whose sum has no end.
    """
    together: dict[torch.dtype, list[Tensor]] = {}
    sums: list[Tensor] = []
    for part in parts:
        if part.numel() > _SMALL:
            sums.append(part.sum(dtype=torch.float64))
        else:
            together.setdefault(part.dtype, []).append(part if part.ndim == 1 else part.reshape(-1))
    sums += [torch.cat(small).sum(dtype=torch.float64) for small in together.values()]
    return not sums or bool(torch.stack(sums).sum().isfinite())


def non_finite(op: str, name: str, x: Tensor) -> str:
    """Word the message for a matrix in whose result a value is not finite."""
    count, where = 0, (0, 0)
    # Parts in row-major order: of a whole embedding the comparison alone would take gigabytes.
    columns = min(x.shape[1], _PART)
    rows = max(1, _PART // columns)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            bad = ~x[i : i + rows, j : j + columns].isfinite()
            found = int(bad.sum())
            if found and not count:
                row, column = np.unravel_index(int(bad.reshape(-1).view(torch.uint8).argmax()), bad.shape)
                where = (i + int(row), j + int(column))
            count += found
    if count == 0:
        return f"{op}: expected values whose squares are finite, got an overflow ({name})"
    return f"{op}: expected finite values, got {x[where].item()} at {where}, {count} in all ({name})"
