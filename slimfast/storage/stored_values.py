"""Values of tensors that stay in their files: all of them or some rows, in memory of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from slimfast.storage.atomic import cannot_read
from slimfast.storage.weights import Weights

_CHUNK = 16 << 20


def can_read_rows(weights: Weights, name: str) -> bool:
    """Say whether some rows of a tensor can be read without the others."""
    info = weights.info(name)
    return name in weights.extents and info.dtype is not None and len(info.shape) > 1


def read_values(
    weights: Weights, name: str, dtype: torch.dtype, first: int = 0, last: int | None = None
) -> Tensor:
    """Read a tensor into memory of its own, in this dtype, with no more than that and a few MiB in use.

    ``first``, ``last``: of its rows, those from one to another.
    """
    info, extent = weights.info(name), weights.extents.get(name)
    if extent is None or info.dtype is None:
        found = weights.load(name)
        return (found if last is None else found[first:last]).to(dtype, copy=True)
    whole, shape, at = torch.Size(info.shape), torch.Size(info.shape), extent.start
    if first or last is not None:
        shape = torch.Size((len(range(whole[0])[first:last]), *whole[1:]))
        at += first * whole[1:].numel() * info.dtype.itemsize
    found = torch.empty(shape, dtype=dtype, device="cpu")
    flat, size = found.view(-1), info.dtype.itemsize
    try:
        with extent.path.open("rb") as file:
            file.seek(at)
            for start in range(0, flat.numel(), _CHUNK // size):
                part = flat[start : start + _CHUNK // size]
                read = torch.empty(part.numel() * size, dtype=torch.uint8, device="cpu")
                if file.readinto(read.numpy().data) != read.numel():
                    raise cannot_read(extent.path, f"{name}: it ends before the tensor does")
                part.copy_(read.view(info.dtype))
    except OSError as error:
        raise cannot_read(extent.path, error) from error
    return found
