"""Inputs that every kernel backend is tested with, and the one accuracy rule they are all held to.

Generators are seeded by the case itself, so that a failing case repeats on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slimfast.kernels import dispatch

# Sizes around every place where a kernel changes its path: vector widths, tiles, warps and cache blocks.
SMALL_SIZES = (1, 2, 3, 8, 31, 32, 33, 36, 40, 63, 64, 65)
MIDDLE_SIZES = (127, 128, 129, 255, 256, 257)
BIG_SIZES = (319, 320, 321, 511, 512, 513)
HUGE_SIZES = (1000, 1023, 1024, 1025, 1290)
SIZES = SMALL_SIZES + MIDDLE_SIZES + BIG_SIZES

# (n, d) of covariance inputs: wide, tall, square, one row, one position, and a wide layer split along d.
SHAPES = (
    *((1, 1), (1, 7), (7, 1), (2, 3), (3, 2), (8, 8), (16, 27), (27, 16), (31, 33), (32, 32), (33, 31)),
    *((36, 64), (64, 40), (65, 129), (129, 65), (128, 128), (96, 363), (257, 255), (256, 576), (200, 700)),
    *((5, 5000), (64, 20011), (405, 300)),
)


def generator(*key: int) -> torch.Generator:
    """A generator seeded by the numbers that name a case."""
    seed = 1
    for number in key:
        seed = (seed * 1_000_003 + number) % (1 << 31)
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers seeded by the shape."""
    return torch.randn(shape, generator=generator(*shape), dtype=torch.float64).to(dtype)


def with_spectrum(eigenvalues: Tensor) -> Tensor:
    """A symmetric (m, m) float64 matrix with these eigenvalues and random eigenvectors."""
    m = eigenvalues.shape[0]
    basis, _ = torch.linalg.qr(normal(m, m))
    mat = (basis * eigenvalues.double()) @ basis.T
    return (mat + mat.T) / 2


def wishart(m: int) -> Tensor:
    """The covariance of a random layer with 2 m positions: positive definite."""
    x = normal(m, 2 * m)
    return x @ x.T / (2 * m)


def layer_like(m: int) -> Tensor:
    """A spectrum like a trained layer's: a steep head and a long tail."""
    return with_spectrum(1.0 / torch.arange(1, m + 1, dtype=torch.float64) ** 1.5)


def rank_one(m: int) -> Tensor:
    """The outer product of a random vector with itself."""
    x = normal(m, 1)
    return x @ x.T


def repeated(m: int) -> Tensor:
    """Three distinct eigenvalues, each repeated."""
    return with_spectrum(torch.arange(m) % 3 + 1.0)


def graded(m: int) -> Tensor:
    """Eigenvalues falling geometrically from 1 to 1e-12."""
    return with_spectrum(torch.logspace(0, -12, m, dtype=torch.float64))


def indefinite(m: int) -> Tensor:
    """Eigenvalues of both signs."""
    x = normal(m, m)
    return (x + x.T) / 2


def negative(m: int) -> Tensor:
    """A negative definite matrix."""
    return -wishart(m)


def tridiagonal(m: int) -> Tensor:
    """The second difference matrix, already tridiagonal; its eigenvalues are 2 - 2 cos(pi i / (m + 1))."""
    return (
        2 * torch.eye(m).double() - torch.ones(m - 1).diag(1).double() - torch.ones(m - 1).diag(-1).double()
    )


def block_diagonal(m: int) -> Tensor:
    """Two halves that do not touch, one of them scaled down by 1e6."""
    half = (m + 1) // 2
    return torch.block_diag(wishart(half), 1e-6 * wishart(m - half)) if m > half else wishart(m)


def exactly_known(eigenvalues: Tensor) -> Tensor:
    """A dense (m, m) float64 matrix whose eigenvalues are exactly these small integers.

    Blocks H diag(l) H^T / 2^p with Hadamard matrices H of 2^p rows (p from the binary digits of m), rows and
    columns shuffled: every entry is a multiple of 2^-p, exact in float32 too.
    """
    blocks, at, m = [], 0, len(eigenvalues)
    for power in reversed(range(m.bit_length())):
        if m >> power & 1:
            hadamard = torch.ones(1, 1).double()
            for _ in range(power):
                hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
            blocks.append((hadamard * eigenvalues[at : at + 2**power]) @ hadamard.T / 2**power)
            at += 2**power
    order = torch.randperm(m, generator=generator(m))
    return torch.block_diag(*blocks)[order][:, order]


SYMMETRIC: Mapping[str, Callable[[int], Tensor]] = {
    "wishart": wishart,
    "layer_like": layer_like,
    "zero": lambda m: torch.zeros(m, m).double(),
    "identity": lambda m: torch.eye(m).double(),
    "rank_one": rank_one,
    "repeated": repeated,
    "graded": graded,
    "indefinite": indefinite,
    "negative": negative,
    "tridiagonal": tridiagonal,
    "block_diagonal": block_diagonal,
    "huge_scale": lambda m: 1e30 * wishart(m),
    "tiny_scale": lambda m: 1e-30 * wishart(m),
}
POSITIVE_SEMIDEFINITE = tuple(name for name in SYMMETRIC if name not in ("indefinite", "negative"))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same (n, d) values behind every kind of strides: each tensor equals ``x``."""
    n, d = x.shape
    spaced = x.new_full((2 * n + 1, 3 * d + 2), float("nan"))
    spaced[1::2, 2::3] = x
    offset = x.new_full((n * d + 3,), float("nan"))
    offset[3:] = x.reshape(-1)
    return {
        "contiguous": x.contiguous(),
        "transposed": x.T.contiguous().T,
        "spaced": spaced[1::2, 2::3],
        "offset": offset[3:].view(n, d),
        "broadcast_rows": x[:1].expand(n, d),
        "broadcast_columns": x[:, :1].expand(n, d),
    }


def backends(op: str, *, device: str = "cpu", names: Sequence[str] = ("reference", "cpu")) -> list[str]:
    """The backends that must run ``op`` here; one that cannot fails its tests with the reasons it gives."""
    for name in names:
        reasons = dispatch.why_not(op, [torch.zeros(2, 2, device=device)], name)
        assert not reasons, f"{name} cannot run {op}: {reasons}"
    return list(names)


def assert_as_accurate_as_torch(ours: Tensor, torch_same_dtype: Tensor, float64: Tensor) -> None:
    """Our largest error against float64 is at most twice that of PyTorch in the same dtype.

    PyTorch's error counts as at least one rounding of the largest value (where PyTorch is exact by luck, the
    representation itself is the limit), so there is no tolerance to choose.
    """
    assert ours.shape == torch_same_dtype.shape == float64.shape
    assert ours.dtype == torch_same_dtype.dtype
    if float64.numel() == 0:
        return
    unit = torch.finfo(ours.dtype).eps * float64.abs().max().item()
    torch_error = (torch_same_dtype.double() - float64).abs().max().item()
    error = (ours.double() - float64).abs().max().item()
    allowed = 2 * max(torch_error, unit)
    assert error <= allowed, f"error {error:.3e}, torch's own {torch_error:.3e}, one rounding {unit:.3e}"
