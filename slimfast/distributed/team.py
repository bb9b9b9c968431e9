"""Several processes that measure together: who is there, what each has found, and who has died.

They meet in the store of ``torch.distributed``. Every rank beats in it once a second from a thread, so that
one that is slow can be told from one that is dead; no collective operation is needed, which would hang.
"""

from __future__ import annotations

import datetime
import heapq
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from slimfast.errors import SlimfastError, one_line

# Seconds without a beat after which a rank counts as dead: with what it takes the others to notice and to
# leave, also on a busy machine, less than 30.
TIMEOUT = 15.0
# Seconds for all ranks to arrive: some import from a slow disk.
_ARRIVAL = 120.0
_BEAT = 1.0
_POLL = 0.02
# The store refuses values of 8 MiB and more.
_CHUNK = 4 << 20
# What a beat says: the rank lives, has left in order, has failed with the message that follows, or has given
# up because another is lost, with the message that says so.
_ALIVE, _LEFT, _FAILED, _GAVE_UP = b"+", b"-", b"!", b"?"
# Beats for which the rank that may hold the store stays, so that the others can learn what has happened.
_GRACE = 3


def share_out(costs: Sequence[float], size: int) -> list[list[int]]:
    """Give each of ``size`` ranks indices of tasks, ascending: the costliest first, each to whom has least so
    far.

    Ties go to the smaller index and the lower rank, so that every rank comes to the same result.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [(0.0, rank) for rank in range(size)]
    for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(task)
        heapq.heappush(loads, (load + costs[task], rank))
    return [sorted(share) for share in shares]


@contextmanager
def join_team(*, timeout: float = TIMEOUT) -> Iterator[Team]:
    """Join the processes that ``torchrun`` (or another launcher that sets its variables) started.

    Where ``torch.distributed`` is initialised its store serves, else one is found through RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT.

    Args:
        timeout: How many seconds after its last sign of life a rank counts as dead.

    Returns:
        A context manager that yields the team. Its block is left together: by all, or with an error.

    Raises:
        SlimfastError: Naming the rank that failed or died.

    Example:
        with slimfast.join_team() as team:
            spectra = slimfast.measure_spectra("model.safetensors", graph, team=team)
    """
    store, rank, size = _rendezvous()
    team = Team(store, rank, size, timeout)
    team.arrive()
    try:
        yield team
    except BaseException as error:
        team.leave(team.farewell(error))
        raise
    team.leave(_LEFT)


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@dataclass(slots=True)
class _Watch:
    """What is known of another rank's beats: the last one, and when it was new."""

    beat: bytes
    since: float


class Team:
    """``size`` processes, this one of them the ``rank``-th from 0; made by :func:`join_team`."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._timeout = timeout
        self._exchanges = 0
        self._beat = _ALIVE
        self._names = [f"rank {r}" for r in range(size)]
        self._lost: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slimfast-team", daemon=True)

    def arrive(self) -> None:
        """Say that this rank is there, wait for the others, and begin to beat."""
        name = f"rank {self.rank} ({socket.gethostname()}, process {os.getpid()})"
        try:
            self._store.set(f"beat/{self.rank}", _ALIVE)
            self._store.set(f"name/{self.rank}", name)
            deadline = time.monotonic() + _ARRIVAL
            for rank in range(self.size):
                while not self._store.check([f"name/{rank}"]):
                    if time.monotonic() > deadline:
                        raise SlimfastError(f"rank {rank} of {self.size} did not arrive in {_ARRIVAL:.0f} s")
                    time.sleep(_POLL)
                self._names[rank] = self._store.get(f"name/{rank}").decode()
        except (RuntimeError, OSError) as error:
            raise self._store_is_gone(error) from None
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`SlimfastError` naming the first rank that was found to have failed or died."""
        if self._lost is not None:
            raise SlimfastError(self._lost)

    def exchange(self, content: bytes) -> list[bytes]:
        """Collect what every rank gave to this call, in order of rank; all must make the same calls in
        turn.
        """
        turn = self._exchanges
        self._exchanges += 1
        chunks = [content[i : i + _CHUNK] for i in range(0, len(content), _CHUNK)]
        try:
            for i, chunk in enumerate(chunks):
                self._store.set(f"{turn}/{self.rank}/{i}", chunk)
            self._store.set(f"{turn}/{self.rank}", str(len(chunks)))
            return [self._received(turn, rank) for rank in range(self.size)]
        except (RuntimeError, OSError) as error:
            raise self._store_is_gone(error) from None

    def farewell(self, error: BaseException) -> bytes:
        """Leave a last beat, of a rank that leaves with an error."""
        if self._lost is not None:
            return _GAVE_UP + self._lost.encode()
        return _FAILED + f"{type(error).__name__}: {error}".encode()

    def leave(self, beat: bytes) -> None:
        """Say goodbye; the rank that may hold the store waits until all have, as far as they live."""
        self._beat = beat
        with suppress(RuntimeError, OSError):
            self._store.set(f"beat/{self.rank}", beat)
            grace = _GRACE * _BEAT / _POLL
            while self.rank == 0 and grace > 0 and not all(map(self._has_left, range(self.size))):
                time.sleep(_POLL)
                grace -= self._lost is not None
        self._over.set()
        self._thread.join()

    def _has_left(self, rank: int) -> bool:
        return not self._store.get(f"beat/{rank}").startswith(_ALIVE)

    def _received(self, turn: int, rank: int) -> bytes:
        while not self._store.check([f"{turn}/{rank}"]):
            self.check()
            left = self._store.get(f"beat/{rank}").startswith(_LEFT)
            if left and not self._store.check([f"{turn}/{rank}"]):
                raise SlimfastError(f"{self._names[rank]} has left: it measured something else")
            time.sleep(_POLL)
        count = int(self._store.get(f"{turn}/{rank}"))
        return b"".join(self._store.get(f"{turn}/{rank}/{i}") for i in range(count))

    def _watch(self) -> None:
        """Beat, and look at the beats of the others, until this rank leaves or one is lost."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        keys = [f"beat/{rank}" for rank in others]
        watches = [_Watch(b"", time.monotonic()) for _ in others]
        count = 0
        while self._lost is None and not self._over.wait(_BEAT):
            count += 1
            try:
                if self._beat is _ALIVE:
                    self._store.set(f"beat/{self.rank}", _ALIVE + str(count).encode())
                beats = self._store.multi_get(keys)
            except (RuntimeError, OSError) as error:
                self._lost = str(self._store_is_gone(error))
                return
            for rank, beat, watch in zip(others, beats, watches, strict=True):
                self._look(rank, beat, watch)

    def _look(self, rank: int, beat: bytes, watch: _Watch) -> None:
        silent = time.monotonic() - watch.since
        if beat != watch.beat:
            watch.beat, watch.since = beat, time.monotonic()
        if beat.startswith(_FAILED):
            self._lost = f"{self._names[rank]} failed: {beat[1:].decode(errors='replace')}"
        elif beat.startswith(_GAVE_UP):
            self._lost = beat[1:].decode(errors="replace")
        elif not beat.startswith(_LEFT) and silent > self._timeout:
            self._lost = f"{self._names[rank]} died: no sign of life for {self._timeout:.0f} s"

    def _store_is_gone(self, error: Exception) -> SlimfastError:
        """Explain a lost connection: the store lives in rank 0, or beside it in its launcher."""
        reason = one_line(error).partition(". ")[0]
        return SlimfastError(self._lost or f"{self._names[0]} or its launcher died: no store ({reason})")


def _rendezvous() -> tuple[Any, int, int]:
    """Connect to the store, and find the rank and how many there are."""
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        store: Any = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    else:
        try:
            store, rank, size = next(rendezvous("env://", timeout=datetime.timedelta(seconds=_ARRIVAL)))
        except (ValueError, RuntimeError) as error:
            raise SlimfastError(f"cannot join the other processes: {one_line(error)}") from None
    # An operation on the store of a host that is gone must not wait for ever.
    store.set_timeout(datetime.timedelta(seconds=TIMEOUT))
    # Teams of one launch follow each other; the keys of the last are still there.
    turn = store.add(f"slimfast/{rank}/teams", 1)
    return PrefixStore(f"slimfast/{turn}", store), rank, size
