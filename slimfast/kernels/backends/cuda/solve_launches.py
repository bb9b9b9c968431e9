"""Damped systems through csrc/cuda/cholesky_solve.cu: every step of all of them is one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.backends.cuda.device import Device, device_of
from slimfast.kernels.backends.cuda.tables import Tables
from slimfast.kernels.backends.damped_systems import System, memory_of, solves_of, system_rows


def cholesky_solve(
    mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]]
) -> list[tuple[Tensor, Tensor]]:
    """See :func:`slimfast.kernels.cholesky_solve.grouped_cholesky_solve`: (solutions, failures) of each.

    Which systems failed is told on the host, so this waits for the device once.
    """
    with device_of(mats[0]) as device:
        solves = solves_of(mats, rhs, dampings)
        for batch in solves.batches():
            _solve(device, batch, solves.failures)
        return solves.results()


def _solve(device: Device, systems: Sequence[System], failures: Tensor) -> None:
    """Load, eliminate block after block of columns, substitute back, and store."""
    module, on = device.module, device.on
    memory = memory_of(systems, device.kind)
    blocks = np.array([system.blocks for system in systems], dtype=np.int64)
    sides = np.array([system.sides for system in systems], dtype=np.int64)
    tables = Tables()
    tables.add(system_rows(systems, memory, failures))
    planned: list[tuple[Callable[..., None], int, int, int, tuple[int, ...]]] = []

    def plan(launch: Callable[..., None], alive: int, parts: IntArray, *step: int) -> None:
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts[:alive])])
        planned.append((launch, tables.add(starts), alive, int(starts[-1]), step))

    every, steps = len(systems), int(blocks[0])
    plan(module.solve_load, every, blocks * (blocks + 1) // 2 + sides * blocks)
    for step in range(steps):
        # The systems of more blocks come first: those that have this one.
        alive, left = int((blocks > step).sum()), blocks - step - 1
        plan(module.solve_panel, alive, left + sides, step)
        plan(module.solve_update, alive, left * (left + 1) // 2 + sides * left, step)
    for step in range(steps - 1, -1, -1):
        plan(module.solve_backward, int((blocks > step).sum()), sides * max(step, 1), step)
    plan(module.solve_store, every, sides * blocks)
    table = device.table(tables.numbers)
    at = table.data_ptr()
    for launch, place, alive, count, last in planned:
        launch(*on, at, at + place, alive, count, *last)
