"""Ctrl-C at the command ``slimfast``, while it starts and while it ends: one line, and status 130.

The modules that the command needs take seconds to import, most of it PyTorch's; what an interrupt raises in
the middle of them is a traceback, or is swallowed by a library. The command itself answers by
:class:`KeyboardInterrupt`, so that what it was writing is put away.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import FrameType

LINE = "slimfast: interrupted\n"
STATUS = 130


def is_the_command() -> bool:
    """Say whether this process was started as ``slimfast`` or ``python -m slimfast``, and embeds nothing."""
    if "--multiprocessing-fork" in sys.orig_argv:
        # A worker that was spawned, whose sys.argv is that of the command.
        return False
    if sys.argv[:1] == ["-m"]:
        # The module's own file is not known yet while its package is imported.
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        return after[:1] == ["slimfast"]
    started = PurePath(sys.argv[0] if sys.argv else "")
    return started.name == "slimfast" or started.parts[-2:] == ("slimfast", "__main__.py")


def end_in_one_line() -> None:
    """Let an interrupt end the process of the command, where Ctrl-C means what it usually does there."""
    main = threading.current_thread() is threading.main_thread()
    if main and is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Let an interrupt raise :class:`KeyboardInterrupt` inside the block, and end the process after it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not _end
    ):
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """End the process at once: nothing is being written that could be left half there."""
    # What is printed already stays; the stream may be closed, or in the middle of a write.
    with suppress(OSError, RuntimeError, ValueError):
        sys.stdout.flush()
    os.write(2, LINE.encode())
    os._exit(STATUS)


end_in_one_line()
