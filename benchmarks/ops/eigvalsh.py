"""``grouped_eigvalsh`` on many matrices of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ops import cusolver
from benchmarks.roofline import Roofline, eigvalsh_flops
from benchmarks.timing import BOUND, OURS, Case, Prepared, Row, Run, Target, backend_of
from slimfast.kernels import grouped_eigvalsh

OP = "eigvalsh"
COLUMNS = {"cpu": ("torch", BOUND), "gpu": ("torch", "cusolver", BOUND)}
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-12}

# (dtype, m, matrices, at least so many times torch)
_CPU = (
    *((torch.float32, 16, 1000, 6.0), (torch.float32, 32, 1000, 6.0)),
    *((torch.float32, 64, 32, 6.0), (torch.float32, 128, 32, 8.0), (torch.float32, 256, 32, 6.0)),
    *((torch.float32, 512, 32, 5.0), (torch.float32, 1024, 4, 3.0), (torch.float32, 2048, 2, 3.0)),
    *((torch.float64, 64, 32, 2.5), (torch.float64, 128, 32, 2.5), (torch.float64, 256, 32, 2.5)),
    *((torch.float64, 512, 16, 2.5),),
)
# (m, matrices, of those torch gets, at least so many times torch, and so many times cuSOLVER); None: no
# target. As many matrices as an H100 has multiprocessors, or more: that is a saturated batch.
_GPU = (
    *((16, 16384, 16384, None, None), (32, 16384, 16384, None, None), (48, 8192, 128, 20.0, None)),
    *((64, 8192, 128, 20.0, 1.3), (128, 2048, 64, 20.0, 2.0), (256, 1056, 64, 20.0, 4.0)),
    *((320, 528, 64, 20.0, 10.0), (512, 264, 32, 20.0, 4.0), (1024, 132, 16, 8.0, 4.0)),
    *((2048, 132, 4, None, 3.0),),
)


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each size and dtype."""
    if suite == "cpu":
        return tuple(
            Row(_name(dtype, m, count), (dtype, m, count, count), (Target("torch", times),), quick=m == 64)
            for dtype, m, count, times in _CPU
        )
    found = []
    for m, count, of_torch, torch_times, cusolver_times in _GPU:
        wanted = {"torch": torch_times, "cusolver": cusolver_times}
        targets = tuple(Target(against, times) for against, times in wanted.items() if times)
        parameters = (torch.float32, m, count, of_torch)
        found.append(Row(_name(torch.float32, m, count), parameters, targets, quick=m == 64))
    return tuple(found)


def _name(dtype: torch.dtype, m: int, count: int) -> str:
    return f"{str(dtype).removeprefix('torch.')}, m = {m}, {count} matrices"


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Random covariance matrices as one stack, which cuSOLVER writes over: it gets a copy, off the clock."""
    dtype, m, count, of_torch = row.parameters
    generator = torch.Generator(device).manual_seed(m)
    x = torch.randn(count, m, 2 * m, generator=generator, device=device, dtype=dtype)
    stack = x @ x.mT / (2 * m)
    some = stack[:of_torch]
    # A few matrices stand for all: the same code runs on each.
    sample = stack[: 16 if m < 1024 else 4].double()
    exact = torch.linalg.eigvalsh(sample)
    variants: dict[str, Run | str] = {
        OURS: lambda: grouped_eigvalsh(stack),
        "torch": lambda: torch.linalg.eigvalsh(some),
        "cusolver": cusolver.why_not() or Prepared(stack.clone, cusolver.eigvalsh),
    }
    return Case(
        variants,
        error=lambda values: _error(torch.stack(list(values[: len(exact)])), exact),
        limit=LIMIT[dtype],
        bound=roofline.product_seconds(eigvalsh_flops([m] * count), dtype),
        share={"torch": of_torch / count},
        facts=backend_of("eigvalsh", [stack]),
    )


def _error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact[: len(values)]).abs().max() / exact.abs().max())
