"""Operations on tensors that are many times as long as wide, a slice of their rows in memory at a time.

Embeddings and heads of language models have a row for each token of a vocabulary: as numbers of a network
they are larger than a whole decoder block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# So many times as long as wide is no layer of a block.
LONG = 8
# Bytes of a slice.
_SLICE = 32 << 20

# Gives the rows from one to another.
Rows: TypeAlias = Callable[[int, int], Tensor]


def rows_at_once(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Count the rows of a slice."""
    return max(1, _SLICE // max(1, shape[1] * dtype.itemsize))


def slices_of_rows(rows: Rows, shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Give a tensor's rows a slice at a time, each with the number of its first."""
    step = rows_at_once(shape, dtype)
    for start in range(0, shape[0], step):
        yield start, rows(start, min(start + step, shape[0]))


def rows_of(rows: Rows, shape: Sequence[int], dtype: torch.dtype, index: Tensor) -> Tensor:
    """Give the rows of these numbers (n,), in their order; those that stand side by side are read at once."""
    found = torch.empty(len(index), *shape[1:], dtype=dtype, device="cpu")
    if not len(index):
        return found
    ends = (index.diff() != 1).nonzero()[:, 0] + 1
    starts = [0, *ends.tolist()]
    for start, end in zip(starts, [*starts[1:], len(index)], strict=True):
        first = int(index[start])
        found[start:end] = rows(first, first + end - start)
    return found


def _product(
    rows: Rows, shape: torch.Size, dtype: torch.dtype, turned: bool, place: int, args: list[Any], blank: bool
) -> Any:
    """Multiply with a long matrix W, or with W' where it is ``turned``, from either side."""
    other = args[1 - place]
    if other.dtype != dtype:
        return NotImplemented
    inner = other.shape[1] if place else other.shape[0]
    if inner != shape[1 if bool(place) == turned else 0]:
        return NotImplemented
    if bool(place) == turned:
        # Each slice makes columns of x W', or rows of W x, of its own.
        sizes = (len(other), shape[0]) if place else (shape[0], other.shape[1])
        # Zeros of that size take memory when they are written to.
        found = torch.zeros(sizes, dtype=dtype, device="cpu")
        if blank:
            return found
        for start, part in slices_of_rows(rows, shape, dtype):
            if place:
                found[:, start : start + len(part)] = other @ part.T
            else:
                torch.mm(part, other, out=found[start : start + len(part)])
        return found
    # Each makes a share of all of x W, or of W' x.
    wide = torch.promote_types(dtype, torch.float32)
    sizes = (len(other), shape[1]) if place else (shape[1], other.shape[1])
    found = torch.zeros(sizes, dtype=wide, device="cpu")
    if not blank:
        for start, part in slices_of_rows(rows, shape, dtype):
            span = slice(start, start + len(part))
            found += (other[:, span] @ part if place else part.T @ other[span]).to(wide)
    return found.to(dtype)


def _product_and_sum(
    rows: Rows, shape: torch.Size, dtype: torch.dtype, turned: bool, place: int, args: list[Any], blank: bool
) -> Any:
    """Compute b + x W' with a long matrix W."""
    bias, x, *_ = args
    if place != 2 or not turned or bias.dim() != 1 or {bias.dtype, x.dtype} != {dtype}:
        return NotImplemented
    if x.shape[1] != shape[1] or len(bias) != shape[0]:
        return NotImplemented
    found = torch.zeros(len(x), shape[0], dtype=dtype, device="cpu")
    if not blank:
        for start, part in slices_of_rows(rows, shape, dtype):
            span = slice(start, start + len(part))
            found[:, span] = torch.addmm(bias[span], x, part.T)
    return found


def _looked_up(
    rows: Rows, shape: torch.Size, dtype: torch.dtype, turned: bool, place: int, args: list[Any], blank: bool
) -> Any:
    """Look tokens up, each row that is asked for once."""
    index = args[1]
    if place or turned or not _within(index, shape[0], least=0):
        return NotImplemented
    asked, places = index.reshape(-1).unique(return_inverse=True)
    return rows_of(rows, shape, dtype, asked)[places].reshape(*index.shape, shape[1])


def _cut_out(
    rows: Rows, shape: torch.Size, dtype: torch.dtype, turned: bool, place: int, args: list[Any], blank: bool
) -> Any:
    """Give the rows from one to another."""
    usual: list[Any] = [0, None, None, 1]
    dim, start, stop, step = args[1:] + usual[len(args) - 1 :]
    if turned or dim not in (0, -2) or step != 1:
        return NotImplemented
    span = range(shape[0])[slice(start, stop)]
    return rows(span.start, max(span.start, span.stop))


def _picked(
    rows: Rows, shape: torch.Size, dtype: torch.dtype, turned: bool, place: int, args: list[Any], blank: bool
) -> Any:
    """Give the rows of some numbers."""
    index = args[1]
    if turned or len(index) != 1 or not isinstance(index[0], Tensor) or index[0].dim() != 1:
        return NotImplemented
    if index[0].dtype != torch.int64 or not _within(index[0], shape[0], least=-shape[0]):
        return NotImplemented
    return rows_of(rows, shape, dtype, index[0] % shape[0])


def _within(index: Tensor, count: int, *, least: int) -> bool:
    """Say whether all are rows; what the whole operation says of others is for it to say."""
    return not index.numel() or (int(index.min()) >= least and int(index.max()) < count)


_aten = torch.ops.aten
# Called with the long tensor's rows, shape and dtype, whether it is turned, its place among the arguments,
# all others, and whether nobody looks at the result; NotImplemented where only all of it will do.
LONG_OPS: Mapping[Any, Callable[..., Any]] = {
    _aten.mm.default: _product,
    _aten.addmm.default: _product_and_sum,
    _aten.embedding.default: _looked_up,
    _aten.slice.Tensor: _cut_out,
    _aten.index.Tensor: _picked,
}
