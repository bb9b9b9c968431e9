"""One function in one process with a limit of time and of memory, and what it told before it ended."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.zoo.stages import Stopped

# Seconds between two looks at a process that tells nothing.
_LOOK = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take: seconds, bytes of memory of its own, threads."""

    seconds: float
    memory: int
    threads: int


def start_server() -> None:
    """Begin the process that all others are forked from, with the libraries they need already imported."""
    _CONTEXT.set_forkserver_preload(["benchmarks.zoo.preloaded"])


def run_limited(function: Callable[..., None], arguments: tuple[Any, ...], limits: Limits) -> dict[str, Any]:
    """Call ``function(*arguments, tell)`` in a new process; returns stage name -> what was told of it.

    A stage that was started and did not end is told as failed: out of time, or by what ended the process;
    what ends it between two stages is told as a failure too.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_call, args=(function, arguments, limits, sender), daemon=True)
    process.start()
    sender.close()
    told: dict[str, Any] = {}
    running, ended = "start", False
    # Its time begins when the function does, not with what it takes to start a process.
    receiver.poll(None)
    deadline = time.monotonic() + limits.seconds
    while not ended and time.monotonic() < deadline:
        try:
            while receiver.poll(min(_LOOK, max(0.0, deadline - time.monotonic()))):
                running, facts = receiver.recv()
                if facts is not None:
                    told[running] = facts
                    running = ""
        except EOFError:
            ended = True
    if not ended:
        process.kill()
    process.join()
    receiver.close()
    if not ended and running:
        told[running] = {"failed": f"not finished in {limits.seconds:g} s"}
    elif process.exitcode:
        told[running or "between the stages"] = {
            "failed": f"the process ended with status {process.exitcode}"
        }
    return told


def _call(
    function: Callable[..., None], arguments: tuple[Any, ...], limits: Limits, sender: Connection
) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
    torch.set_num_threads(limits.threads)
    # What a network's code prints is not ours to show.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())
    sender.send(("start", None))
    try:
        function(*arguments, lambda stage, facts: sender.send((stage, facts)))
    except Stopped:
        pass
    finally:
        sender.close()


_CONTEXT = multiprocessing.get_context("forkserver")
