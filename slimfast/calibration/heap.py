"""Memory that was freed, and that the C library keeps: given back to the system where it is much."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallInfo(ctypes.Structure):
    """What ``mallinfo2`` of the GNU C library (2.33 and later) returns; ``fordblks`` are the free bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def give_back(more_than: int) -> None:
    """Give free memory back to the system, where more than so many bytes of it are kept.

    Each thread keeps what it has freed for itself: of many that take turns all but one would keep memory that
    none of them uses. Other C libraries than GNU's are left alone.
    """
    functions = _functions()
    if functions is not None and functions[0]().fordblks > more_than:
        functions[1](0)


@functools.cache
def _functions() -> tuple[Callable[[], _MallInfo], Callable[[int], int]] | None:
    """Find ``mallinfo2`` and ``malloc_trim``; None where there are none."""
    try:
        library = ctypes.CDLL(None)
        info, trim = library.mallinfo2, library.malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
    info.restype, info.argtypes = _MallInfo, []
    trim.restype, trim.argtypes = ctypes.c_int, [ctypes.c_size_t]
    return info, trim
