"""Tensors cut as they are read, some rows at a time: embeddings and heads are too long to be read whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.checkpoints.streamed import WEIGHTS
from slimfast.graph.cutting.cut import thin_shape
from slimfast.pruning.gathering import gather_slices
from slimfast.pruning.selection import Method
from slimfast.storage.long_tensors import LONG, rows_at_once
from slimfast.storage.stored_tensors import Shelf, StoredTensor, entry_of
from slimfast.storage.stored_values import can_read_rows, read_values
from slimfast.storage.weights import Weights

# Choices of units that look at sums over the weights of each.
_SUMS = ("lookahead", "l1", "l2")


def are_long(weights: Weights, stored: str) -> bool:
    """Say whether a stored tensor is an embedding's or a head's, whose rows can be read one by one."""
    shape = weights.info(stored).shape
    return len(shape) == 2 and shape[0] >= LONG * shape[1] and can_read_rows(weights, stored)


class CutTensor:
    """A stored tensor cut to some indices of its dims, in some dtype."""

    def __init__(
        self, weights: Weights, stored: str, cuts: Mapping[int, IntArray], dtype: torch.dtype, backend: str
    ) -> None:
        self._weights, self._stored, self._cuts = weights, stored, cuts
        self._dtype, self._backend = dtype, backend
        self.shape = torch.Size(thin_shape(weights.info(stored).shape, cuts))

    def read(self) -> Tensor:
        """Read all of it; of a long one never all that it is cut from."""
        if not are_long(self._weights, self._stored):
            return self._cut(read_values(self._weights, self._stored, self._dtype), self._cuts)
        found, start = torch.empty(self.shape, dtype=self._dtype, device="cpu"), 0
        for part in self.parts():
            found[start : start + len(part)] = part
            start += len(part)
        return found

    def parts(self) -> Iterator[Tensor]:
        """Read its rows, some after the others."""
        step = rows_at_once(self._weights.info(self._stored).shape, self._dtype)
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))

    def rows(self, first: int, last: int) -> Tensor:
        """Read the rows from one to another, as they are numbered when it is cut."""
        cuts = dict(self._cuts)
        if 0 in cuts and first < last:
            own = cuts.pop(0)[first:last]
            first, last = int(own.min()), int(own.max()) + 1
            if len(own) < last - first:
                cuts[0] = own - first
        return self._cut(read_values(self._weights, self._stored, self._dtype, first, last), cuts)

    def _cut(self, wide: Tensor, cuts: Mapping[int, IntArray]) -> Tensor:
        return gather_slices({self._stored: wide}, {self._stored: cuts}, self._backend)[self._stored]


def looked_at(weights: Weights, stored: str, select: Method) -> Tensor:
    """Open a tensor for a choice of units: a map of its file, or, of a long one of which sums alone are
    asked for, what brings some rows at a time, for a map that is read is in memory too.
    """
    dtype = weights.info(stored).dtype
    if select in _SUMS and dtype is not None and are_long(weights, stored):
        return StoredTensor(entry_of(weights, stored, dtype), Shelf(WEIGHTS))
    return weights.load(stored)
