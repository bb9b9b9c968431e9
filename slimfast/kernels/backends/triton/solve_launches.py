"""Damped systems on Triton: what the kernels are told, and their launches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slimfast.kernels.backends.damped_systems import BLOCK, System, memory_of, solves_of, system_rows
from slimfast.kernels.backends.triton import schedule


def solve_systems(
    mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]]
) -> list[tuple[Tensor, Tensor]]:
    """Solve every damped system: (solutions, failures) of each matrix."""
    solves = solves_of(mats, rhs, dampings)
    for batch in solves.batches():
        _solve(batch, solves.failures)
    return solves.results()


def _solve(systems: Sequence[System], failures: Tensor) -> None:
    """Load, eliminate block after block of columns, substitute back, and store."""
    from slimfast.kernels.backends.triton import solve_kernels as kernels
    from slimfast.kernels.backends.triton.moment_kernels import ELEMENT

    memory = memory_of(systems, failures.device)
    of_dtype: dict[torch.dtype, list[int]] = {}
    for i, system in enumerate(systems):
        of_dtype.setdefault(system.a.dtype, []).append(i)
    members = [np.array(numbers, dtype=np.int64) for numbers in of_dtype.values()]
    rows, *members_on = schedule.to_device(
        [system_rows(systems, memory, failures), *members], failures.device
    )
    # The systems of more blocks come first: those that have a step. The widest decides a launch's programs.
    steps, sides = systems[0].blocks, max(system.sides for system in systems)
    for dtype, own in zip(of_dtype, members_on, strict=True):
        count = steps * (steps + 1) // 2 + sides * steps
        kernels.load_kernel[(count, len(own))](rows, own, ELEMENT=ELEMENT[dtype], BLOCK=BLOCK)
    for step in range(steps):
        alive, left = sum(system.blocks > step for system in systems), steps - step - 1
        kernels.panel_kernel[(left + sides, alive)](rows, step, BLOCK=BLOCK, num_warps=kernels.WARPS)
        if left:
            count = left * (left + 1) // 2 + sides * left
            kernels.update_kernel[(count, alive)](rows, step, BLOCK=BLOCK, num_warps=kernels.WARPS)
    for step in range(steps - 1, -1, -1):
        alive = sum(system.blocks > step for system in systems)
        kernels.backward_kernel[(sides * max(step, 1), alive)](
            rows, step, BLOCK=BLOCK, num_warps=kernels.WARPS
        )
    for dtype, own in zip(of_dtype, members_on, strict=True):
        kernels.store_kernel[(steps * sides, len(own))](rows, own, ELEMENT=ELEMENT[dtype], BLOCK=BLOCK)
