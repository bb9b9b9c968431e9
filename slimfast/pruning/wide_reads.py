"""What units are worth to layers that read too many variables for the moments of all pairs of them.

Such layers are seen once more on the calibration's samples, of whose positions a share is kept: as many
numbers as fit, for any width.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.consumers import Consumer, consumers_of
from slimfast.calibration.data import Calibration, norms_of_variables
from slimfast.calibration.forward import Slice, run, running, watched
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.massive import shrinking
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors

# Bytes of float64 that one layer's positions may take while its units are chosen.
_BYTES = 64 << 20
# More positions than this say little that is new.
_POSITIONS = 2048


def wide_rows(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration, groups: Collection[ChannelGroup]
) -> dict[str, list[Tensor]]:
    """Gather how the units of groups vary in what wide layers read.

    Args:
        model: The network that was calibrated.
        graph: Its groups.
        calibration: Whose samples run once more.
        groups: Those of the graph that no layer with moments reads.

    Returns:
        For each group that a wide layer reads, by name, matrices (n, positions): its rows are the units, each
        variable times the norm of the weights that read it, each layer in shares of its variance.

    Raises:
        SlimfastError: For a forward that fails and for what is not finite.
    """
    wanted = {m.tensor for group in groups for m in graph.consumers(group)}
    every, _ = consumers_of(model, graph)
    consumers = {c.weight: c for c in every if c.weight in wanted - calibration.readings.keys()}
    if not consumers:
        return {}
    reads = _Reads(calibration.samples)
    with running(model) as (network, _):
        for part in calibration.slices(MEMORY):
            reads.begin(part)
            with watched(network, consumers.values(), reads.see):
                run(network, part.args, "select")
    tensors = graph.effective(named_tensors(model))
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        rows = [
            row
            for member in graph.consumers(group)
            if (seen := reads.of(member.tensor)) is not None
            for row in _of_units(
                seen, consumers[member.tensor], member.units, group.n, tensors[member.tensor]
            )
        ]
        if rows:
            found[group.name] = rows
    return found


def _of_units(seen: Tensor, consumer: Consumer, units: IntArray, n: int, weight: Tensor) -> list[Tensor]:
    """Lay out (n, positions) for each variable that a unit has in what a layer reads."""
    x = seen.double() * norms_of_variables(consumer, weight)[:, None]
    x -= x.mean(1, keepdim=True)
    index = torch.from_numpy(consumer.unit_index(units, n))
    size = float(x[index.reshape(-1)].norm()) or 1.0
    return [x[column] / size for column in index.T]


class _Reads:
    """Positions of what each layer reads, evenly spaced over all samples."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._kept: dict[str, list[Tensor]] = {}
        self._part = Slice(((), {}), 0)

    def begin(self, part: Slice) -> None:
        """Say which samples run next."""
        self._part = part

    def see(self, consumer: Consumer, x: Tensor) -> None:
        """Keep this slice's share of the positions."""
        view = consumer.laid_out(x)
        counting = positions_that_count(view.shape[:-1], self._part.mask)
        factors = shrinking(consumer, x, self._part.samples, counting)
        if factors is not None:
            view = view * factors[..., None].to(view)
        rows = view.reshape(-1, view.shape[-1]) if counting is None else view[counting]
        most = max(2, min(_POSITIONS, _BYTES // (8 * rows.shape[-1])))
        share = min(len(rows), math.ceil(most * self._part.samples / self._samples))
        # The middle of each of as many equal parts.
        places = ((torch.arange(share, device=rows.device) + 0.5) * (len(rows) / share)).long()
        kept = rows[places].T.float().cpu()
        if not bool(kept.isfinite().all()):
            raise SlimfastError(
                f"select: expected finite activations, got others (read by {consumer.module})"
            )
        self._kept.setdefault(consumer.weight, []).append(kept)

    def of(self, weight: str) -> Tensor | None:
        """Return what a layer read, (L, positions); None for a layer that is not wide, or was not called."""
        return torch.cat(self._kept[weight], 1) if weight in self._kept else None
