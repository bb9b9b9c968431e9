"""One layer of the thin network: its least squares over all slices, and its new weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.data import Reading
from slimfast.calibration.positions import wanted
from slimfast.pruning.repair.least_squares import FIRST, LeastSquares, worst
from slimfast.pruning.repair.report import Fit
from slimfast.pruning.repair.wide import Piece
from slimfast.pruning.repair.writing import write_weight
from slimfast.storage.stored_tensors import is_long, write_rows


class ThinLayer:
    """The layer ``module`` of the thin network that stands for a consumer of the wide one."""

    def __init__(
        self,
        consumer: Consumer,
        module: nn.Module,
        reading: Reading,
        weight: Tensor,
        bias: Tensor | None,
        alive: tuple[IntArray, IntArray],
        outputs: IntArray,
        *,
        centred: bool,
        damping: float,
        backend: str,
    ) -> None:
        self._consumer, self._module = consumer, module
        self._reading, self._weight = reading, weight
        self._bias = None if bias is None else bias.detach().double()
        self._blocks, self._outputs = alive[0].tolist(), torch.from_numpy(outputs).to(weight.device)
        self._centred, self._damping = centred or bias is not None, damping
        kept = torch.from_numpy(alive[1]).to(weight.device)
        # Of a head in a file some rows at a time are in memory.
        self._long = is_long(weight) and (consumer.dim, consumer.run) == (1, 1)
        wide = [weight.detach()] if self._long else list(consumer.matrix(weight.detach()))
        self._per_block = len(wide[0])
        seen = min(reading.count, wanted(consumer))
        # The last quarter is held out.
        self._split = max(seen - seen // 4, 1)
        counts = self._split, seen - self._split
        self._systems = [
            LeastSquares(kept, wide[block], centred=self._centred, counts=counts, backend=backend)
            for block in self._blocks
        ]

    def add(self, x: Tensor, piece: Piece) -> bool:
        """Take in what the layer is about to read of a slice, beside what the wide network's read there.

        Returns whether it reads as many positions.
        """
        b = piece.rows.take()
        if self._consumer.laid_out(x).shape[:-1] != piece.shape:
            return False
        a = self._consumer.columns(x, piece.index)
        if a.untyped_storage()._cdata == x.untyped_storage()._cdata:
            # It waits until there are more, and the forward may be put away meanwhile.
            a = a.clone()
        if a.dtype != torch.float64:
            a, b = a.float(), b.float()
        if piece.factors is not None:
            # A token counts alike on both sides.
            a = a * piece.factors.to(a)
        inner, length = len(a) // len(self._blocks), len(b) // self._consumer.blocks
        cut = min(max(self._split - piece.first, 0), a.shape[1])
        for held, span in ((False, slice(0, cut)), (True, slice(cut, None))):
            for i, block in enumerate(self._blocks):
                self._systems[i].add(
                    a[i * inner : (i + 1) * inner, span],
                    b[block * length : (block + 1) * length, span],
                    held=held,
                )
        return True

    @torch.no_grad()
    def write(self, first: float = FIRST) -> Fit | str:
        """Solve from what was taken in, and write the weights; how well they fit, or why the layer cannot
        have them.

        The search for the damping begins at ``first``.
        """
        # Of a convolution in groups whole ones may be gone, and outputs of those that stay.
        rows = (
            self._outputs.reshape(len(self._blocks), -1) % self._per_block
            if self._consumer.blocks > 1
            else self._outputs[None]
        )
        if self._long:
            return self._written_in_pieces(first, rows[0])
        solutions = [
            system.solve(self._spread(block), self._damping, first, own)
            for block, system, own in zip(self._blocks, self._systems, rows, strict=True)
        ]
        matrix = solutions[0].weight if len(solutions) == 1 else torch.cat([s.weight for s in solutions])
        module: Any = self._module
        why = write_weight(module, self._consumer.weight_of(matrix, self._weight))
        if why is not None:
            return f"{self._consumer.module}: {why}"
        if self._bias is not None:
            moved = torch.cat([s.shift for s in solutions])
            module.bias.copy_(self._bias[self._outputs] + moved)
        return worst([s.fit for s in solutions])

    def _written_in_pieces(self, first: float, outputs: Tensor) -> Fit:
        """Solve, and write some outputs' weights after the others'."""
        module: Any = self._module
        pieces, fit = self._systems[0].solve_in_pieces(self._spread(0), self._damping, first, outputs)
        shifts: list[Tensor] = []

        def weights() -> Iterator[Tensor]:
            for weight, shift in pieces:
                shifts.append(shift)
                yield weight[..., 0]

        write_rows(module._parameters["weight"], weights())
        if self._bias is not None:
            module.bias.copy_(self._bias[self._outputs] + torch.cat(shifts))
        return fit

    def _spread(self, block: int) -> Tensor:
        """Give the mean square of what a block of the wide layer reads, about its mean where that goes
        away.
        """
        length = self._consumer.length // self._consumer.blocks
        own = slice(block * length, (block + 1) * length)
        mean, covariance = self._reading.mean[own], self._reading.covariance[own, own]
        spread = covariance * ((self._reading.count - 1) / self._reading.count)
        if not self._centred:
            spread = spread + torch.outer(mean, mean)
        return spread.to(self._outputs.device)
