"""The state of an unfinished training on disk, the random generators in it, and Ctrl-C that waits for it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimfast.errors import SlimfastError, one_line
from slimfast.storage.atomic import atomic_path, check_file

# 2: ``average``; 3: ``teacher``, without which trainings of schema 1 and 2 go on.
SCHEMA = 3
FILE = "training.pt"
_OPTIONAL = (dict, tuple, list, type(None))
# What a training is made of, and the types that may stand there.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "recipe": dict,
    "epoch": int,
    "step": int,
    "losses": torch.Tensor,
    "records": list,
    "student": dict,
    "optimizer": dict,
    "scaler": _OPTIONAL,
    "rng": _OPTIONAL,
    "best": _OPTIONAL,
    "average": _OPTIONAL,
    "teacher": (str, type(None)),
}


def save_training(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) to ``folder``, whole or not at all."""
    with atomic_path(folder / FILE) as temporary:
        torch.save({"schema": SCHEMA, **state}, temporary)


def load_training(folder: Path) -> dict[str, Any] | None:
    """Read what :func:`save_training` wrote, None where there is nothing; only tensors and plain values.

    Raises:
        SlimfastError: the file is damaged, or not one of ours.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        stream = check_file(path).open("rb")
    except OSError as error:
        raise SlimfastError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    with stream:
        try:
            state = torch.load(stream, map_location="cpu", weights_only=True)
        # Damage shows as any of a dozen types, from seek errors to unpickling errors.
        except Exception as error:
            found = f"{type(error).__name__}: {one_line(error).partition('. ')[0]}"
            raise SlimfastError(
                f"{os.fspath(path)} is damaged or not a training checkpoint ({found})"
            ) from error
    if isinstance(state, dict) and state.get("schema") in (1, 2):
        state = {"average": None, "teacher": None, **state, "schema": SCHEMA}
    if not isinstance(state, dict) or set(state) != set(_TYPES):
        raise SlimfastError(f"{os.fspath(path)} is not a training checkpoint of slimfast")
    if state["schema"] != SCHEMA:
        found = state["schema"]
        raise SlimfastError(f"{os.fspath(path)} has schema {found}, this version of slimfast reads {SCHEMA}")
    for name, types in _TYPES.items():
        if not isinstance(state[name], types):
            got = type(state[name]).__name__
            raise SlimfastError(
                f"{os.fspath(path)} is not a training checkpoint of slimfast: {name} is a {got}"
            )
    return state


def rng_state() -> dict[str, Any]:
    """Take the state of the generators of Python, NumPy and torch, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` gave; devices that are not here are passed over."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(saved, device)


@contextmanager
def postponed_interrupt(*, announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Postpone Ctrl-C: inside the block it only sets what the yielded function returns; a second one stops.

    ``announce`` is called at the first. Off the main thread, where signals cannot be caught, it never sets.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    # None: a handler that Python did not install and so cannot put back.
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()
        announce()

    signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
