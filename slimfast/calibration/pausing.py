"""Forwards that stop where they are asked to and go on later, so that many can be at one layer at once.

A forward is Python that nobody can leave in the middle and come back to, but a thread can wait. Each forward
has a thread of its own, and never more than one of them, or their caller, runs: what they do is as if it were
done in turns by one thread.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

import torch

E = TypeVar("E")

# Kinds of devices whose autocasting a thread has settings of its own for.
_AUTOCAST = ("cpu", "cuda")


class _Stop(BaseException):
    """Ends a forward that nobody will go on with."""


class Pausable(Generic[E]):
    """A piece of work that runs while :meth:`resume` waits for it, and stops where it calls :meth:`pause`.

    PyTorch's settings that belong to a thread, such as autocasting and the default device, are those of the
    thread that made it.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        settings, context = _thread_settings(), contextvars.copy_context()
        self._work = work
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._at: E | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self.done = False
        self._thread = threading.Thread(
            target=context.run, args=(self._run, settings), name="slimfast-forward", daemon=True
        )

    def resume(self) -> E | None:
        """Let the work go on, and return what it pauses with next; None where it has come to its end.

        What the work raises is raised here.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._back.acquire()
        at, self._at = self._at, None
        if self._error is not None:
            raise self._error
        return at

    def pause(self, at: E) -> None:
        """Stop the work here until it is resumed; to be called by the work alone."""
        if not self._stopped:
            self._at = at
            del at
            self._back.release()
            self._go.acquire()
        if self._stopped:
            raise _Stop

    def close(self) -> None:
        """End the work where it stands, its ``finally`` blocks included."""
        if self._thread.ident is not None:
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _run(self, settings: Callable[[], ExitStack]) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                with settings():
                    self._work()
        except _Stop:
            pass
        except BaseException as error:
            # Nothing is lost: whoever resumed it gets it.
            self._error = error
        finally:
            self.done = True
            self._back.release()


@contextmanager
def closing(forwards: list[Pausable[E]]) -> Iterator[None]:
    """Close all of them at the end, whatever happened."""
    try:
        yield
    finally:
        for forward in forwards:
            forward.close()


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _thread_settings() -> Callable[[], ExitStack]:
    """Note this thread's settings of PyTorch; what is returned sets them in another thread."""
    grad, device = torch.is_grad_enabled(), torch.get_default_device()
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
    stream = torch.cuda.current_stream() if _uses_cuda() else None

    def enter() -> ExitStack:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            if device != torch.get_default_device():
                stack.enter_context(device)
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            return stack.pop_all()

    return enter
