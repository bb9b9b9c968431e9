"""Damped systems as kernels on a device see them: what they are solved in, and rows of int64 for tables."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.memory import call_bytes

# Rows and columns of a block of the factors: kSolveBlock in C++.
BLOCK = 64
# What the factors of systems that are solved together take at most where the kernels are emulated.
_CPU_BYTES = 256 << 20

# The fields of a system's row; csrc/cuda/cholesky_solve.hpp explains them and has the same.
FIELDS = (
    *("matrix", "is_double", "size", "row_stride", "column_stride", "damping", "right", "sides"),
    *("right_row_stride", "right_column_stride", "solution", "failure", "factor", "squares", "unknowns"),
)


@dataclass(frozen=True, slots=True)
class System:
    """One damped matrix, its number in the call, and blocks of rows (its own, those of right-hand sides)."""

    a: Tensor
    b: Tensor
    damping: float
    solution: Tensor
    number: int

    @property
    def blocks(self) -> int:
        return -(-len(self.a) // BLOCK)

    @property
    def sides(self) -> int:
        return -(-self.b.shape[1] // BLOCK)

    @property
    def elements(self) -> int:
        """Float64 numbers of its factor, squares on the diagonal and unknowns."""
        return BLOCK * BLOCK * self.blocks * (self.blocks + 2 * self.sides + 1)


@dataclass(frozen=True, slots=True)
class Solves:
    """All systems of a call: results (dampings, m, k) of each matrix, and what failed, on the device."""

    systems: list[System]
    solutions: list[Tensor]
    failures: Tensor

    def batches(self) -> list[list[System]]:
        """Part the systems, the largest first, into batches whose factors stay within the device's memory."""
        most = call_bytes(self.failures.device, _CPU_BYTES)
        batches: list[list[System]] = []
        used = 0
        for system in sorted(self.systems, key=lambda system: -system.blocks):
            need = 8 * system.elements
            if not batches or used + need > most:
                batches.append([])
                used = 0
            batches[-1].append(system)
            used += need
        return batches

    def results(self) -> list[tuple[Tensor, Tensor]]:
        """Give (solutions, failures) of each matrix, in one wait for the device."""
        each = torch.split(self.failures.cpu(), [len(solutions) for solutions in self.solutions])
        return list(zip(self.solutions, each, strict=True))


def solves_of(mats: Sequence[Tensor], rhs: Sequence[Tensor], dampings: Sequence[Sequence[float]]) -> Solves:
    """Allocate the results of a call, and list its systems."""
    device = mats[0].device
    solutions = [
        torch.empty(len(each), *b.shape, dtype=b.dtype, device=device)
        for b, each in zip(rhs, dampings, strict=True)
    ]
    systems: list[System] = []
    for a, b, each, found in zip(mats, rhs, dampings, solutions, strict=True):
        for damping, x in zip(each, found, strict=True):
            systems.append(System(a, b, damping, x, len(systems)))
    return Solves(systems, solutions, torch.zeros(len(systems), dtype=torch.int64, device=device))


def memory_of(systems: Sequence[System], device: torch.device) -> Tensor:
    """Allocate what the systems are solved in."""
    return torch.empty(sum(system.elements for system in systems), dtype=torch.float64, device=device)


def system_rows(systems: Sequence[System], memory: Tensor, failures: Tensor) -> IntArray:
    """List the systems (s, fields), each with its part of the memory."""
    rows, at = [], memory.data_ptr()
    for system in systems:
        a, b = system.a, system.b
        row = [a.data_ptr(), int(a.dtype == torch.float64), len(a), *a.stride()]
        row += [struct.unpack("q", struct.pack("d", system.damping))[0], b.data_ptr(), b.shape[1]]
        row += [*b.stride(), system.solution.data_ptr(), failures.data_ptr() + 8 * system.number]
        tile, m = 8 * BLOCK * BLOCK, system.blocks
        squares = at + tile * m * (m + system.sides)
        rows.append([*row, at, squares, squares + tile * m])
        at += 8 * system.elements
    return np.array(rows, dtype=np.int64)
