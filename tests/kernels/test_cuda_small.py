"""Every CUDA kernel once on small inputs: quick enough for compute-sanitizer (``make sanitize-gpu``)."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases

from slimfast.kernels import (
    Convolution,
    grouped_cholesky_solve,
    grouped_covariance,
    grouped_cross_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_moments,
    grouped_patch_moments,
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


@pytest.mark.parametrize("dtype", [*BOTH, torch.bfloat16, torch.float16])
def test_moments(device: str, dtype: torch.dtype) -> None:
    # Small tiles, large ones, positions in parts, either way in memory, a mask, and a second operand.
    mask = torch.arange(40, device=device) % 3 > 0
    xs = [cases.normal(*shape, dtype=dtype).to(device) for shape in ((20, 33), (260, 40), (30, 1100))]
    xs.append(cases.normal(40, 90, dtype=dtype).to(device).T)
    found = grouped_moments(xs, masks=[None, mask, None, mask], backend="cuda")
    for x, kept, moments in zip(xs, (None, mask, None, mask), found, strict=True):
        columns = x.double() if kept is None else x.double()[:, kept]
        assert torch.allclose(moments.covariance(), torch.cov(columns), atol=1e-4)
    (cross,) = grouped_cross_covariance([xs[1]], [xs[3]], backend="cuda")
    both = torch.cov(torch.cat([xs[1], xs[3]]).double())
    assert torch.allclose(cross.covariance(), both[:260, 260:], atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patch_moments(device: str, groups: int) -> None:
    x = cases.normal(2, 4, 9, 8, dtype=torch.float32).to(device)
    conv = Convolution((3, 3), (2, 1), (1, 1), (1, 1), groups)
    (found,) = grouped_patch_moments([x], [conv], backend="cuda")
    columns = torch.nn.functional.unfold(x.double(), 3, padding=1, stride=(2, 1)).movedim(0, 1).flatten(1)
    for own, squares in zip(columns.chunk(groups), found.squares, strict=True):
        assert torch.allclose(squares / (found.count - 1), torch.cov(own), atol=1e-4)


def test_cholesky_solve(device: str) -> None:
    # One block and several, of both types.
    sizes = [(30, 3), (130, 70)]
    mats = [cases.wishart(m).to(device, dtype) for m, _ in sizes for dtype in BOTH]
    rhs = [cases.normal(m, k, dtype=dtype).to(device) for m, k in sizes for dtype in BOTH]
    solutions, _ = grouped_cholesky_solve(mats, rhs, [[0.1, 1.0]] * 4, backend="cuda")
    for a, b, found in zip(mats, rhs, solutions, strict=True):
        for x, damping in zip(found.double(), (0.1, 1.0), strict=True):
            assert torch.allclose(a.double() @ x + damping * x, b.double(), atol=1e-4)


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
    (moments,) = grouped_moments([rows], backend="cuda")
    assert torch.allclose(moments.covariance(), torch.cov(rows.double()), atol=1e-5)
    (moments,) = grouped_moments([rows], dims=1, backend="cuda")
    assert torch.allclose(moments.covariance(), torch.cov(rows.T.double()), atol=1e-5)
    # Two images of one channel and one row.
    images = far.as_strided((2, 1, 1, n), (stride, n, n, 1))
    conv = Convolution((1, 3), (1, 1), (0, 1), (1, 1))
    (patches,) = grouped_patch_moments([images], [conv], backend="cuda")
    columns = torch.nn.functional.unfold(images.double(), (1, 3), padding=(0, 1)).movedim(0, 1).flatten(1)
    assert torch.allclose(patches.squares[0] / (2 * n - 1), torch.cov(columns), atol=1e-5)
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
