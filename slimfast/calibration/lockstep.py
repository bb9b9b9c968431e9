"""Forwards of several slices of samples side by side, which go from stop to stop together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from slimfast.calibration.forward import Slice, run
from slimfast.calibration.heap import give_back
from slimfast.calibration.pausing import Pausable, closing
from slimfast.calibration.sleeping import Activations
from slimfast.calibration.spilling import Store

# A layer's name, and how many times it was called before.
Place: TypeAlias = tuple[str, int]
Stop: TypeAlias = tuple[Place, Tensor]
# Given a network and the function to stop with: sets hooks that call it with (place, what is read there).
Hooks: TypeAlias = Callable[[nn.Module, Callable[[Stop], None]], None]
# Each thread that computes has helpers of its own, as many as PyTorch is told: so many of them in all.
_THREADS = 1024
# Free memory that threads may keep to themselves: what is left of the memory that may be held, or this share.
_KEPT = 8


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Put PyTorch's number of threads back at the end, where forwards had to do with fewer."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _tidier(store: Store | None) -> Callable[[int], None]:
    """Make what is told how many bytes a forward has made since, and now and then gives free memory back."""
    fresh = 0

    def tidy(made: int) -> None:
        nonlocal fresh
        fresh += made
        # To look costs milliseconds; there is no more to give back than was made.
        if store is not None and fresh > store.memory // _KEPT:
            fresh = 0
            give_back(max(store.memory // _KEPT, store.memory - store.held))

    return tidy


class _Forward:
    """The forward of one slice, and what it holds while it waits."""

    def __init__(
        self, network: nn.Module, part: Slice, hooks: Hooks, store: Store | None,
        wake: Callable[[int], None], tidy: Callable[[int], None], threads: int, what: str,
    ) -> None:  # fmt: skip
        self._store, self._tidy, self._told = store, tidy, 0
        self.activations = None if store is None else Activations(wake)

        def work() -> None:
            if threads < torch.get_num_threads():
                torch.set_num_threads(threads)
            hooks(network, self.turns.pause)
            if self.activations is None:
                run(network, part.args, what)
            else:
                with self.activations:
                    run(network, part.args, what)

        self.turns: Pausable[Stop] = Pausable(work)

    def resume(self) -> Stop | None:
        if self.activations is not None and self._store is not None:
            self.activations.wake_up(self._store)
        return self.turns.resume()

    def sleep(self) -> None:
        if self.activations is not None and self._store is not None:
            self.activations.sleep(self._store)
            self._tidy(self.activations.made - self._told)
            self._told = self.activations.made


def advance_together(
    networks: Sequence[nn.Module],
    slices: Sequence[Slice],
    hooks: Hooks,
    *,
    order: Mapping[str, int],
    meet: Callable[[Place, int, Tensor], None],
    settle: Callable[[Place], None],
    store: Store | None,
    what: str = "repair",
    in_order: bool = False,
    finished: Callable[[], bool] = lambda: False,
) -> None:
    """Run every slice on its own copy of a network, all of them up to the same stop before any goes on.

    Args:
        networks: A copy for each slice; what they share stays as it is.
        slices: The samples.
        hooks: Sets the stops of a copy.
        order: Which of several places comes first, where the slices do not all go the same way.
        meet: Called with the place, the number of the slice, and what is read there.
        settle: Called with the place when all that come to it have.
        store: Where forwards that wait are put away; None lets them keep what they hold.
        what: The verb that a forward which fails is said to fail in.
        in_order: At each place the slices come in the order of their numbers, which costs to put one more of
            them away there.
        finished: Asked when a place is settled: whether nothing else is wanted, and all of them end there.
    """
    forwards: list[_Forward] = []
    tidy = _tidier(store)

    def wake(address: int) -> None:
        for forward in forwards:
            if forward.activations is not None and store is not None:
                forward.activations.bring_back(address, store)

    threads = max(1, _THREADS // max(1, len(slices)))
    for network, part in zip(networks, slices, strict=True):
        forwards.append(_Forward(network, part, hooks, store, wake, tidy, threads, what))
    with _threads_kept(), closing([forward.turns for forward in forwards]):
        waiting: dict[int, Place] = {}
        going, awake = list(range(len(forwards))), -1
        while going:
            for i in going:
                if awake not in (-1, i):
                    forwards[awake].sleep()
                stop = forwards[i].resume()
                awake = -1
                if stop is not None:
                    waiting[i], awake = stop[0], i
                    meet(stop[0], i, stop[1])
                del stop
            if not waiting:
                break
            first = min(set(waiting.values()), key=lambda place: (order.get(place[0], len(order)), place[1]))
            settle(first)
            if finished():
                break
            # The last to come is in memory still: it is the first to go on.
            back = not in_order and going == sorted(going)
            going = sorted((i for i, at in waiting.items() if at == first), reverse=back)
            if not in_order:
                going.sort(key=lambda i: i != awake)
            waiting = {i: at for i, at in waiting.items() if at != first}
