"""``grouped_cholesky_solve`` of the systems that a repair solves: each with several dampings."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.roofline import Roofline
from benchmarks.timing import BOUND, OURS, Case, Row, Run, Target, backend_of
from slimfast.kernels import CholeskySolutions, grouped_cholesky_solve

OP = "cholesky_solve"
COLUMNS = {"cpu": ("torch", "best", "eigh", BOUND), "gpu": ("torch", "best", "eigh", "cuda", "triton", BOUND)}
LIMIT = 1e-8

# (m, right-hand sides, systems, dampings)
_CPU = (
    (32, 32, 64, 10),
    (64, 128, 32, 10),
    (256, 256, 8, 10),
    (576, 576, 2, 10),
    (1024, 1024, 1, 4),
    (2048, 512, 1, 2),
)
_GPU = ((64, 128, 256, 10), (576, 576, 30, 10), (1536, 576, 30, 10), (4096, 4096, 4, 4))
_DAMPINGS = tuple(10.0**power for power in range(-1, -11, -1))


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each size."""
    return tuple(
        Row(
            f"float64, m = {m}, {k} right-hand sides, {count} systems, {dampings} dampings",
            (m, k, count, dampings),
            (Target("best", 1.0),) if suite == "cpu" else (),
            quick=m == 64,
        )
        for m, k, count, dampings in (_CPU if suite == "cpu" else _GPU)
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: ``torch.linalg.solve`` of each damped matrix. Best: ``torch.linalg.cholesky`` and
    ``torch.cholesky_solve`` of all dampings in one batch. ``eigh``: one decomposition a system, which all
    dampings share.
    """
    m, k, count, dampings = row.parameters
    generator = torch.Generator(device).manual_seed(m)
    x = torch.randn(count, m, 2 * m, generator=generator, device=device, dtype=torch.float64)
    mats = list((x @ x.mT / (2 * m)).unbind())
    rhs = list(torch.randn(count, m, k, generator=generator, device=device, dtype=torch.float64).unbind())
    each = _DAMPINGS[:dampings]
    lists = [list(each)] * count
    eye = torch.eye(m, device=device, dtype=torch.float64)
    added = torch.tensor(each, device=device, dtype=torch.float64)[:, None, None]
    exact = torch.linalg.solve(mats[0] + added * eye, rhs[0])

    def plain() -> list[Tensor]:
        return [
            torch.stack([torch.linalg.solve(a + damping * eye, b) for damping in each])
            for a, b in zip(mats, rhs, strict=True)
        ]

    def best() -> list[Tensor]:
        return [
            torch.cholesky_solve(b.expand(dampings, m, k), torch.linalg.cholesky(a + added * eye))
            for a, b in zip(mats, rhs, strict=True)
        ]

    def shared() -> list[Tensor]:
        found = []
        for a, b in zip(mats, rhs, strict=True):
            values, vectors = torch.linalg.eigh(a)
            found.append(vectors @ ((vectors.mT @ b) / (values[:, None] + added)))
        return found

    def error(found: CholeskySolutions | list[Tensor]) -> float:
        first = found.solutions[0] if isinstance(found, CholeskySolutions) else found[0]
        return float((first - exact).abs().max() / exact.abs().max())

    variants: dict[str, Run | str] = {
        OURS: lambda: grouped_cholesky_solve(mats, rhs, lists),
        "torch": plain,
        "best": best,
        "eigh": shared,
    }
    if device == "cuda":
        variants |= {
            backend: lambda backend=backend: grouped_cholesky_solve(mats, rhs, lists, backend=backend)
            for backend in ("cuda", "triton")
        }
    flops = count * dampings * (m**3 / 3.0 + 2.0 * m * m * k)
    return Case(
        variants,
        error=error,
        limit=LIMIT,
        bound=roofline.product_seconds(flops, torch.float64),
        facts=backend_of("cholesky_solve", mats),
    )
