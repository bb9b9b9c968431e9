"""What this machine can do: its measured rates of products and of copying, and the bounds they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import time_in_turn


@dataclass(frozen=True, slots=True)
class Roofline:
    """Rates by PyTorch on this machine.

    ``products``: FLOP/s of square matrix products by dtype; ``copy``: bytes read plus bytes written per
    second.
    """

    products: Mapping[str, float]
    copy: float

    def product_seconds(self, flops: float, dtype: torch.dtype) -> float:
        """At least this long for so many floating point operations in products of this dtype.

        A number of 16 bits is one of float32 too: where the machine has no fast products of 16 bits, those of
        float32 are the bound.
        """
        rate = self.products[str(dtype).removeprefix("torch.")]
        return flops / (max(rate, self.products["float32"]) if dtype.itemsize == 2 else rate)

    def copy_seconds(self, nbytes: float) -> float:
        """At least this long for so many bytes, read and written together."""
        return nbytes / self.copy

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return asdict(self)


def measure_roofline(device: str, *, quick: bool = False) -> Roofline:
    """Measure the rates: seconds on a CPU, less on a GPU."""
    on_gpu = device == "cuda"
    size = 512 if quick else 8192 if on_gpu else 2048
    products = {}
    # On a CPU, 16-bit products are a matter of the instruction set: a smaller one says as much.
    for dtype, length in (
        (torch.float32, size),
        (torch.float64, size),
        (torch.bfloat16, size if on_gpu else size // 2),
    ):
        # Numbers as weights are: with ones a GPU draws less power and runs a tenth faster.
        a = torch.randn(length, length, device=device).to(dtype)
        out = torch.empty_like(a)
        # The best of a few is what the machine can do; the median says what it was allowed to.
        timing = time_in_turn({"product": _product(a, out)}, seconds=0.5 if quick else 2.0)["product"]
        products[str(dtype).removeprefix("torch.")] = 2 * length**3 / timing.p20
    count = 1 << (22 if quick else 30 if on_gpu else 26)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    timing = time_in_turn({"copy": lambda: target.copy_(source)}, seconds=1.0)["copy"]
    return Roofline(products, 2 * source.nbytes / timing.p20)


def _product(a: Tensor, out: Tensor) -> Any:
    return lambda: torch.mm(a, a, out=out)


def covariance_flops(sizes: Sequence[tuple[int, int]]) -> float:
    """Multiplications and additions of one triangle of X X^T for operands (m, k)."""
    return sum(m * (m + 1.0) * k for m, k in sizes)


def eigvalsh_flops(sizes: Sequence[int]) -> float:
    """Of the reduction to tridiagonal form, 4/3 m^3; the eigenvalues of the tridiagonal come on top."""
    return sum(4.0 / 3.0 * m**3 for m in sizes)
