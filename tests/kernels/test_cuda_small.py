"""Every CUDA kernel once on small inputs: quick enough for compute-sanitizer (``make sanitize-gpu``)."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases

from slimfast.kernels import (
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    grouped_spectra,
)

BOTH = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [*BOTH, torch.bfloat16, torch.float16])
def test_covariance(device: str, dtype: torch.dtype) -> None:
    # Small tiles, large ones, samples in parts, and the columns side.
    xs = [
        cases.normal(*shape, dtype=dtype).to(device) for shape in ((20, 33), (260, 40), (30, 1100), (90, 21))
    ]
    for x, matrix in zip(xs, grouped_covariance(xs, side="rows", backend="cuda").matrices, strict=True):
        assert torch.allclose(matrix.double(), torch.cov(x.double()), atol=1e-4)
    (narrow,), _ = grouped_covariance(xs[3:], backend="cuda")
    assert narrow.shape == (21, 21)


@pytest.mark.parametrize("dtype", BOTH)
def test_eigvalsh(device: str, dtype: torch.dtype) -> None:
    # A warp, a block, and beyond what one block holds.
    sizes = (7, 40, 150) if device == "cpu" else (7, 40, 150, 400, 700)
    mats = [cases.wishart(m).to(device, dtype) for m in sizes]
    for mat, values in zip(mats, grouped_eigvalsh(mats, backend="cuda"), strict=True):
        exact = torch.linalg.eigvalsh(mat.double())
        assert torch.allclose(values.double(), exact, atol=1e-4 * float(exact[-1]))


def test_pivoted_cholesky(device: str) -> None:
    # A block each, and a cluster for the largest.
    mats = [cases.wishart(m).to(device, dtype) for m in (30, 70, 530) for dtype in BOTH]
    for mat, found in zip(mats, grouped_pivoted_cholesky(mats, [9] * 6, backend="cuda"), strict=True):
        left = mat.double().trace() - found.factor.double().square().sum()
        assert torch.isclose(left, found.residual[-1].double(), rtol=1e-4)


def test_addresses_of_more_than_32_bits(device: str, tmp_path) -> None:
    # Two rows more than 2^32 elements apart: on a CPU in a sparse file, of which few pages are touched.
    stride, n = (1 << 32) + 24, 8
    size = stride + n
    if device == "cpu":
        far = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.bfloat16)
    else:
        far = torch.empty(size, dtype=torch.bfloat16, device=device)
    rows = far.as_strided((2, n), (stride, 1))
    rows.copy_(cases.normal(2, n))
    found, _ = grouped_covariance([rows, rows.T], side="rows", backend="cuda")
    for x, matrix in zip((rows, rows.T), found, strict=True):
        assert torch.allclose(matrix.double(), torch.cov(x.double()), atol=1e-5)
    thin = grouped_gather(
        [rows, rows], [{0: torch.tensor([1])}, {1: torch.tensor([0, 3, 7])}], backend="cuda"
    )
    assert torch.equal(thin[0], rows[1:])
    assert torch.equal(thin[1], rows[:, [0, 3, 7]])


def test_gather(device: str) -> None:
    weight = cases.normal(24, 20, 3, 3).to(device)
    rows, columns = torch.tensor([0, 3, 4, 21]), torch.tensor([1, 2, 19])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8):
        w = weight.to(dtype)
        thin = grouped_gather([w, w, w[0]], [{0: rows, 1: columns}, {0: rows}, {1: rows[:1]}], backend="cuda")
        assert torch.equal(thin[0], w[rows.to(device)][:, columns.to(device)])
        assert torch.equal(thin[1], w[rows.to(device)])
        assert torch.equal(thin[2], w[0][:, :1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_spectra_of_a_gpu_in_one_batch_and_in_several() -> None:
    xs = [cases.normal(n, 2 * n, dtype=dtype).cuda() for n in (9, 70, 300) for dtype in BOTH]
    together, alone = grouped_spectra(xs), grouped_spectra(xs, workspace_bytes=1)
    for x, values, again in zip(xs, together.eigenvalues, alone.eigenvalues, strict=True):
        assert values.device.type == "cpu"
        assert values.dtype == torch.float64
        exact = torch.linalg.eigvalsh(torch.cov(x.double())).cpu()
        assert torch.allclose(values, exact, atol=1e-4 * float(exact[-1]))
        assert torch.allclose(again, exact, atol=1e-4 * float(exact[-1]))
