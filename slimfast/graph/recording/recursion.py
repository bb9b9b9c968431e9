"""Python's limit on calls inside of calls, raised for networks that are nested deep."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slimfast.graph.recording.network import Network

# Modules inside of one another of which nobody need take care, and the calls that each level takes at most:
# three of nn.Module's own, one of a recording, and those of walks and copies.
_USUAL, _CALLS = 40, 16

_lock = threading.Lock()
_raised: list[int] = []
_before = 0


@contextmanager
def nested_calls_allowed(network: Network) -> Iterator[None]:
    """Let a forward that runs as it is also run while it is recorded, which takes more calls a level.

    The limit is the process's: it is put back when the last of several has ended.
    """
    levels = max((path.count(".") + 1 for path in network.modules if path), default=0)
    if levels <= _USUAL:
        yield
        return
    global _before
    more = levels * _CALLS
    with _lock:
        if not _raised:
            _before = sys.getrecursionlimit()
        _raised.append(more)
        sys.setrecursionlimit(_before + max(_raised))
    try:
        yield
    finally:
        with _lock:
            _raised.remove(more)
            sys.setrecursionlimit(_before + max(_raised, default=0))
