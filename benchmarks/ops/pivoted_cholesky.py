"""``grouped_pivoted_cholesky`` to half the rows of every matrix."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.roofline import Roofline
from benchmarks.timing import BOUND, OURS, Case, Row, Run, backend_of
from slimfast.kernels import PivotedCholesky, grouped_pivoted_cholesky

OP = "pivoted_cholesky"
COLUMNS = {"cpu": ("torch", "best", BOUND), "gpu": ("torch", BOUND)}

# (n, matrices)
_CPU = ((64, 32), (256, 32), (512, 16), (1024, 4), (2048, 1))
_GPU = ((64, 512), (256, 264), (512, 132), (1024, 64), (2048, 16), (4096, 8))


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each size."""
    return tuple(
        Row(f"float32, n = {n}, rank {n // 2}, matrices: {count}", (n, count), quick=n == 64)
        for n, count in (_CPU if suite == "cpu" else _GPU)
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: the textbook loop in PyTorch. Best: LAPACK's ``spstrf``, which knows no rank."""
    n, count = row.parameters
    generator = torch.Generator(device).manual_seed(n)
    x = torch.randn(count, n, 2 * n, generator=generator, device=device)
    # Rows of different sizes, as filters have, so that the picks are not decided by rounding.
    x *= torch.rand(count, n, 1, generator=generator, device=device) + 0.1
    stack = x @ x.mT / (2 * n)
    mats = list(stack.unbind())
    ranks = [n // 2] * count
    some = mats[: max(1, count // 16)]
    exact = _residual(_textbook(mats[0].double(), ranks[0])[1], mats[0].double())
    variants: dict[str, Run | str] = {
        OURS: lambda: grouped_pivoted_cholesky(mats, ranks),
        "torch": lambda: [_textbook(mat, n // 2) for mat in some],
        "best": _lapack(mats, n // 2) if device == "cpu" else "LAPACK's spstrf runs on CPUs",
    }

    def error(results: list[PivotedCholesky | tuple[Tensor, Tensor]]) -> float:
        """Of the trace left unexplained, which does not depend on how ties are broken."""
        factor = results[0][1]
        return abs(_residual(factor.double().to(device), mats[0].double()) - exact) / exact

    flops = 2.0 * count * sum(n * k for k in range(n // 2))
    return Case(
        variants,
        error=error,
        limit=1e-3,
        bound=roofline.product_seconds(flops, torch.float32),
        share={"torch": len(some) / count},
        facts=backend_of("pivoted_cholesky", mats),
    )


def _residual(factor: Tensor, mat: Tensor) -> float:
    return float(mat.trace() - factor.square().sum())


def _textbook(mat: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(order, factor): the largest diagonal left, its column, one step after another."""
    left = mat.diagonal().clone()
    factor = mat.new_zeros(mat.shape[0], rank)
    order = torch.zeros(rank, dtype=torch.int64, device=mat.device)
    for step in range(rank):
        pick = left.argmax()
        column = (mat[pick] - factor[:, :step] @ factor[pick, :step]) / left[pick].sqrt()
        column[order[:step]] = 0.0
        factor[:, step] = column
        left -= column.square()
        order[step] = pick
        left[order[: step + 1]] = 0.0
    return order, factor


def _lapack(mats: list[Tensor], rank: int) -> Run | str:
    try:
        spstrf = importlib.import_module("scipy.linalg.lapack").spstrf
    except ImportError as error:
        return f"scipy does not load: {error}"

    def run() -> list[tuple[Tensor, Tensor]]:
        return [_factored(spstrf(mat.numpy(), lower=1), rank) for mat in mats]

    return run


def _factored(found: Any, rank: int) -> tuple[Tensor, Tensor]:
    factor, pivots, _, _ = found
    return torch.from_numpy(pivots), torch.from_numpy(factor).tril()[:, :rank]
