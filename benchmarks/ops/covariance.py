"""``grouped_covariance`` on single layers, where a product of matrices is all there is."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.roofline import Roofline, covariance_flops
from benchmarks.timing import BOUND, OURS, Case, Row, Run, Target, backend_of, by_backends
from slimfast.kernels import grouped_covariance

OP = "covariance"
COLUMNS = {
    "cpu": ("torch", "best", "float32", BOUND),
    "gpu": ("torch", "best", "float32", "cuda", "triton", BOUND),
}
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-5}

# (dtype, n, d, layers, what the layers stand for)
_CPU = (
    (torch.float32, 512, 4608, 1, "3 x 3 convolution"),
    (torch.float32, 2048, 512, 1, "columns side"),
    (torch.float32, 64, 576, 32, "narrow layers"),
    (torch.float64, 512, 4608, 1, "3 x 3 convolution"),
    (torch.bfloat16, 512, 4608, 1, "3 x 3 convolution"),
)
_GPU = (
    (torch.float32, 512, 4608, 32, "3 x 3 convolutions"),
    (torch.float32, 4096, 4096, 4, "square"),
    (torch.float64, 4096, 4096, 1, "square"),
    (torch.bfloat16, 4096, 4096, 8, "decoder projections"),
    (torch.bfloat16, 14336, 4096, 4, "decoder MLP, columns side"),
    (torch.bfloat16, 4096, 14336, 4, "decoder MLP, rows side"),
)


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each shape."""
    found = []
    for dtype, n, d, count, kind in _CPU if suite == "cpu" else _GPU:
        layers = f"{count} layers " if count > 1 else ""
        name = f"{layers}{n} x {d}, {str(dtype).removeprefix('torch.')} ({kind})"
        if suite == "gpu":
            targets: tuple[Target, ...] = (Target(BOUND, 0.6),)
        elif dtype == torch.bfloat16:
            targets = (Target("float32", 3.0, "with AMX or AVX512-BF16"),)
        elif count == 1 and dtype == torch.float32:
            targets = (Target("best", 1.7),)
        else:
            targets = ()
        found.append(Row(name, (dtype, n, d, count), targets, quick=n == 64 or count == 32))
    return tuple(found)


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: centre, and multiply rows. Best: the smaller side, in one product for all layers of a shape."""
    dtype, n, d, count = row.parameters
    generator = torch.Generator(device).manual_seed(n)
    stack = torch.randn(count, n, d, generator=generator, device=device).to(dtype)
    xs = list(stack.unbind())
    wide = stack[0].double()
    exact = _smaller_side(wide - wide.mean(1, keepdim=True), d)
    of_rows = torch.cov(wide).reshape(n, n) if n > d else exact
    narrow = dtype in (torch.bfloat16, torch.float16)
    # 16-bit products of PyTorch round the deviations first: as a user would, the plain way is in float32.
    plain = stack.float() if narrow else stack
    floats = list(plain.unbind())
    variants: dict[str, Run | str] = {
        OURS: lambda: grouped_covariance(xs).matrices,
        "torch": lambda: [_rows(x) for x in floats],
        "best": lambda: _smaller_side(plain - plain.mean(-1, keepdim=True), d).unbind(),
        "float32": (lambda: grouped_covariance(floats).matrices) if narrow else "the input is not 16-bit",
    }

    if device == "cuda":
        variants |= by_backends(
            lambda name: grouped_covariance(xs, backend=name).matrices, ("cuda", "triton")
        )

    def error(matrices: list[Tensor]) -> float:
        target = exact if matrices[0].shape == exact.shape else of_rows
        return float((matrices[0].double() - target).abs().max() / target.abs().max())

    m, k = min(n, d), max(n, d)
    return Case(
        variants,
        error=error,
        limit=LIMIT[dtype],
        bound=roofline.product_seconds(count * covariance_flops([(m, k)]), dtype),
        facts=backend_of("covariance", xs),
    )


def _rows(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred @ centred.T / (x.shape[1] - 1)


def _smaller_side(centred: Tensor, d: int) -> Tensor:
    left = centred if centred.shape[-2] <= centred.shape[-1] else centred.mT
    return left @ left.mT / (d - 1)
