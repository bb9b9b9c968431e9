"""Damped normal equations of many layers, solved by Cholesky factors in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from slimfast.errors import ArgumentError, NonFinite
from slimfast.kernels.checks import all_finite, check_one_device, check_squares, names_of, non_finite
from slimfast.kernels.dispatch import select_backend
from slimfast.kernels.results import CholeskySolutions


def grouped_cholesky_solve(
    mats: Sequence[Float[Tensor, "_m _m"]],
    rhs: Sequence[Float[Tensor, "_m _k"]],
    dampings: Sequence[Sequence[float]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> CholeskySolutions:
    """Solve (A_i + d I) X = B_i for every symmetric A_i (m_i, m_i), B_i (m_i, k_i) and each damping d of it.

    Only the lower triangle of A_i is read. Factors and solutions are computed in float64. A damped matrix
    that is not positive definite has no solution here, and ``failures`` says so. Equivalent to
    ``torch.linalg.solve(a + d * torch.eye(m), b)`` for each.

    Args:
        mats: The matrices, float32 or float64.
        rhs: The right-hand sides, of their dtype.
        dampings: Of each matrix one or more numbers of at least 0, added to its diagonal as they are.
        names: Of the layers, for messages.
        backend: The kernels to use.

    Returns:
        The solutions (j_i, m_i, k_i) in the matrices' dtype, and which failed.

    Raises:
        ValueError: Naming the layer, for a bad shape, a negative damping, or a value that is not finite.

    Example:
        gram, cross = torch.eye(8), torch.randn(8, 3)
        (solutions,), (failures,) = slimfast.grouped_cholesky_solve([gram], [cross], [[0.1, 0.01]])
        solutions.shape   # (2, 8, 3)
    """
    op = "cholesky_solve"
    named = names_of(op, mats, names)
    if len(rhs) != len(mats) or len(dampings) != len(mats):
        raise ArgumentError(
            f"{op}: expected {len(mats)} right-hand sides and lists of dampings, got {len(rhs)} and "
            f"{len(dampings)}"
        )
    check_squares(op, mats, named)
    for a, b, each, name in zip(mats, rhs, dampings, named, strict=True):
        shape = b.shape
        if len(shape) != 2 or shape[0] != a.shape[0] or shape[1] == 0 or b.dtype != a.dtype:
            raise ArgumentError(
                f"{op}: expected a right-hand side ({len(a)}, k) with k >= 1 of {a.dtype}, got "
                f"{tuple(b.shape)} of {b.dtype} ({name})"
            )
        if not each or not all(0.0 <= damping < math.inf for damping in each):
            raise ArgumentError(
                f"{op}: expected one or more dampings of at least 0, got {list(each)} ({name})"
            )
    if not mats:
        return CholeskySolutions([], [])
    every = [*mats, *rhs]
    check_one_device(op, every)
    if not all_finite(every):
        _refuse_what_is_not_finite(mats, rhs, named)
    lists = [[float(damping) for damping in each] for each in dampings]
    module = select_backend(op, every, backend)
    solved = module.cholesky_solve([a.detach() for a in mats], [b.detach() for b in rhs], lists)
    return CholeskySolutions([x for x, _ in solved], [failed for _, failed in solved])


def _refuse_what_is_not_finite(mats: Sequence[Tensor], rhs: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise :class:`NonFinite` for the first of them that holds a value which is not, and which counts."""
    every = [*mats, *rhs]
    sums = torch.stack([x.sum(dtype=torch.float64) for x in every])
    for i, finite in enumerate(sums.isfinite().tolist()):
        # Of a matrix only the lower triangle counts: what is above it may be anything.
        if not finite and (i >= len(mats) or not mats[i].tril().sum(dtype=torch.float64).isfinite()):
            raise NonFinite(non_finite("cholesky_solve", [*names, *names][i], every[i]))
