"""What the wide network's layers read at the positions that the least squares see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.calibration.consumers import Consumer
from slimfast.calibration.data import Calibration
from slimfast.calibration.forward import Slice, copy_to_run, run, running, stop_before, watched
from slimfast.calibration.lockstep import advance_together
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.massive import shrinking
from slimfast.calibration.reads import Seen
from slimfast.calibration.spilling import Held, Store
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.stored_tensors import shelves_of

# Positions of each layer's input that the least squares see: at least so many, and so many per variable.
POSITIONS = 8192
POSITIONS_PER_VARIABLE = 4
BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What a layer reads of one slice: ``rows`` (L, s) at the positions ``index`` of ``shape``, None for all.

    ``first``: how many of the layer's positions that the least squares see come before; ``factors`` (s,):
    what brings massive tokens down to their bound, in ``rows`` already, None where there are none.
    """

    rows: Held
    index: Tensor | None
    shape: torch.Size
    first: int
    factors: Tensor | None = None


# A piece, and what was asked for: of how many positions how many, and from which on.
_Held: TypeAlias = tuple[Piece, tuple[tuple[int, int], int]]


@dataclass(slots=True, eq=False)
class WideReads:
    """What each layer reads, slice by slice: by its weight and the slice's number.

    ``calls``: the most calls of a layer in one slice; ``followed``: the layers whose output goes right into a
    batch norm; ``positions``: how many each has read; ``picks``: which of so many positions are seen.
    """

    pieces: dict[str, dict[int, Piece]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)
    positions: dict[str, int] = field(default_factory=dict)
    picks: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)


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
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
            networks = [copy_to_run(model) for _ in slices]
            for network in networks:
                hooks.enter_context(_followed(network, consumers, found.followed))
            advance_together(
                networks,
                slices,
                lambda network, pause: stop_before(network, by_path, pause),
                order={op.module: i for i, op in reversed(list(enumerate(graph.operations)))},
                meet=lambda place, number, x: hold(number, by_path[place[0]], x),
                settle=lambda place: tick(),
                store=store,
                in_order=True,
            )
    else:
        with running(model) as (network, _):
            for number, part in enumerate(slices):
                see = functools.partial(hold, number)
                with watched(network, consumers, see), _followed(network, consumers, found.followed):
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
    known, same = seen.look(consumer, x) or (None, None)
    if known is not None and same == (ask, start):
        known.rows.users += 1
        found.pieces[weight][number] = known
        return
    if ask not in found.picks:
        found.picks[ask] = picked(*ask)
    picks, index, first = found.picks[ask], None, start
    if picks is not None:
        first, last = torch.searchsorted(picks, torch.tensor([start, start + size], device="cpu")).tolist()
        index = picks[first:last] - start
    if counting is not None:
        places = counting.reshape(-1).nonzero()[:, 0]
        index = places if index is None else places[index.to(places.device)]
    if index is not None:
        index = index.to(x.device)
    rows = consumer.columns(x, index)
    if rows.untyped_storage()._cdata == x.untyped_storage()._cdata:
        rows = rows.clone()
    factors = shrinking(consumer, x, part.samples, counting)
    if factors is not None:
        factors = factors.reshape(-1) if index is None else factors.reshape(-1)[index]
        rows = rows * factors.to(rows)
    piece = Piece(store.put(rows), index, shape, first, factors)
    seen.note(consumer, x, (piece, (ask, start)))
    found.pieces[weight][number] = piece


def wanted(consumer: Consumer) -> int:
    """Count the positions of a layer's input that its least squares see, where there are as many."""
    return max(POSITIONS, POSITIONS_PER_VARIABLE * consumer.length)


def picked(total: int, count: int) -> Tensor | None:
    """Pick ``count`` of so many positions, in order and always the same; None for all of them."""
    if total <= count:
        return None
    generator = torch.Generator().manual_seed(total)
    return torch.randperm(total, generator=generator, device="cpu")[:count].sort().values


@contextmanager
def _followed(network: nn.Module, consumers: Sequence[Consumer], followed: set[str]) -> Iterator[None]:
    """Find the layers whose output goes right into a batch norm."""
    made: dict[int, tuple[str, Tensor]] = {}

    def made_by(weight: str, module: nn.Module, inputs: Any, output: Any) -> None:
        made.clear()
        if isinstance(output, Tensor):
            made[id(output)] = (weight, output)

    def taken(module: nn.Module, inputs: Any) -> None:
        if inputs and id(inputs[0]) in made:
            followed.add(made[id(inputs[0])][0])

    with ExitStack() as hooks:
        for consumer in consumers:
            module = network.get_submodule(consumer.module)
            hooks.callback(module.register_forward_hook(functools.partial(made_by, consumer.weight)).remove)
        for norm in norms_of(network).values():
            hooks.callback(norm.register_forward_pre_hook(taken).remove)
        yield


def norms_of(network: nn.Module) -> Mapping[str, Any]:
    """Find the batch norms that keep running statistics, by path."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, BATCH_NORM) and module.running_mean is not None
    }
