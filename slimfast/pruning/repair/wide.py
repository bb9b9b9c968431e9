"""What the wide network's layers read at the positions that the least squares see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.calibration.batch_norms import followed
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.data import Calibration
from slimfast.calibration.forward import Slice, copy_to_run, run, running, stop_before, watched
from slimfast.calibration.kept_rows import KeptRows
from slimfast.calibration.last_layers import Ending
from slimfast.calibration.lockstep import Place, advance_together
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.positions import Picks, rows_at, wanted
from slimfast.calibration.reads import Seen
from slimfast.calibration.spilling import Held, Store
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.stored_tensors import shelves_of


class Rows(Protocol):
    """Rows that wait until they are taken, or dropped."""

    def take(self) -> Tensor:
        """Give them out."""

    def drop(self) -> None:
        """Let them go."""


class _Kept(NamedTuple):
    """Rows that the calibration has kept: of a layer, from one position of those that are seen to another."""

    kept: KeptRows
    weight: str
    first: int
    last: int

    def take(self) -> Tensor:
        """Read them."""
        return self.kept.read(self.weight, self.first, self.last)

    def drop(self) -> None:
        """Leave them to other repairs."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What a layer reads of one slice: ``rows`` (L, s) at the positions ``index`` of ``shape``, None for all.

    ``first``: how many of the layer's positions that the least squares see come before; ``factors`` (s,):
    what brings massive tokens down to their bound, in ``rows`` already, None where there are none.
    """

    rows: Rows
    index: Tensor | None
    shape: torch.Size
    first: int
    factors: Tensor | None = None


# A piece with what holds its rows, and what was asked for: of how many positions how many, from which on.
_Held: TypeAlias = tuple[Piece, Held, tuple[tuple[int, int], int]]


@dataclass(slots=True, eq=False)
class WideReads:
    """What each layer reads, slice by slice: by its weight and the slice's number.

    ``calls``: the most calls of a layer in one slice; ``followed``: the layers whose output goes right into a
    batch norm; ``positions``: how many each has read.
    """

    pieces: dict[str, dict[int, Piece]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)
    positions: dict[str, int] = field(default_factory=dict)
    picks: Picks = field(default_factory=Picks)


def kept_of(
    kept: KeptRows, consumers: Sequence[Consumer], slices: Sequence[Slice], calibration: Calibration
) -> WideReads:
    """Find what these layers read of these slices among what was kept while they were calibrated."""
    found = WideReads({consumer.weight: {} for consumer in consumers}, followed=set(kept.followed))
    for weight, pieces in found.pieces.items():
        layer, picks = kept.layers[weight], found.picks
        for number, part in enumerate(slices):
            shape = torch.Size((layer.lead * part.samples, *layer.rest))
            start, size = found.positions.get(weight, 0), shape.numel()
            found.positions[weight] = start + size
            first, index = picks.within(layer.total, layer.wanted, start, size)
            last = first + (size if index is None else len(index))
            rows = _Kept(kept, weight, first, last)
            pieces[number] = Piece(rows, index, shape, first, kept.factors(weight, first, last))
        found.calls[weight] = 1
    return found


def read_wide(
    model: nn.Module,
    graph: ChannelGraph,
    consumers: Sequence[Consumer],
    slices: Sequence[Slice],
    calibration: Calibration,
    store: Store,
    tick: Callable[[], None],
) -> WideReads:
    """Run the wide network on every slice, and hold what its layers read at the positions that are picked.

    Where its weights come from files, the slices run side by side.
    """
    found = WideReads(pieces={consumer.weight: {} for consumer in consumers})
    seen: list[Seen[_Held]] = [Seen() for _ in slices]
    calls: list[dict[str, int]] = [{} for _ in slices]

    def hold(number: int, consumer: Consumer, x: Tensor) -> None:
        _hold(found, calls[number], seen[number], number, slices[number], calibration, store, consumer, x)

    if shelves_of(named_tensors(model).values()):
        by_path = {consumer.module: consumer for consumer in consumers}
        order = {op.module: i for i, op in reversed(list(enumerate(graph.operations)))}
        ending = Ending(model, consumers, order)

        def settle(place: Place) -> None:
            ending.settle(place[0])
            if place[0] in by_path:
                tick()

        with torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
            networks = [copy_to_run(model) for _ in slices]
            for network in networks:
                hooks.enter_context(followed(network, consumers, found.followed))
            advance_together(
                networks,
                slices,
                lambda network, pause: stop_before(network, {**by_path, **ending.heads}, pause),
                order=order,
                meet=lambda place, number, x: (
                    hold(number, by_path[place[0]], x) if place[0] in by_path else None
                ),
                settle=settle,
                store=store,
                in_order=True,
                finished=lambda: ending.reached,
            )
    else:
        with running(model) as (network, _):
            for number, part in enumerate(slices):
                see = functools.partial(hold, number)
                with watched(network, consumers, see), followed(network, consumers, found.followed):
                    run(network, part.args, "repair")
                seen[number] = Seen()
                tick()
    for each in calls:
        for weight, times in each.items():
            found.calls[weight] = max(found.calls.get(weight, 0), times)
    return found


def _hold(
    found: WideReads,
    calls: dict[str, int],
    seen: Seen[_Held],
    number: int,
    part: Slice,
    calibration: Calibration,
    store: Store,
    consumer: Consumer,
    x: Tensor,
) -> None:
    """Hold what a layer is about to read, where it is picked."""
    weight = consumer.weight
    calls[weight] = calls.get(weight, 0) + 1
    if calls[weight] > 1:
        return
    shape = consumer.laid_out(x).shape[:-1]
    counting = positions_that_count(shape, part.mask)
    size = shape.numel() if counting is None else int(counting.sum())
    start = found.positions.get(weight, 0)
    found.positions[weight] = start + size
    ask = (calibration.readings[weight].count, wanted(consumer))
    known, held, same = seen.look(consumer, x) or (None, None, None)
    if known is not None and held is not None and same == (ask, start):
        held.users += 1
        found.pieces[weight][number] = known
        return
    first, index = found.picks.within(*ask, start, size)
    if counting is not None:
        places = counting.reshape(-1).nonzero()[:, 0]
        index = places if index is None else places[index.to(places.device)]
    if index is not None:
        index = index.to(x.device)
    rows, factors = rows_at(consumer, x, index, part.samples, counting)
    held = store.put(rows)
    piece = Piece(held, index, shape, first, factors)
    seen.note(consumer, x, (piece, held, (ask, start)))
    found.pieces[weight][number] = piece
