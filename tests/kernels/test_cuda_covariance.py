"""The CUDA covariance against float64, on the CPU through the emulation and on a GPU where there is one."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import kernels_cases as cases
from support.covariances import exact_covariance, plain_covariance

from slimfast.kernels import ops

SINGLE_DOUBLE = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", SINGLE_DOUBLE)
def test_covariance_of_every_shape_and_layout(device: str, dtype: torch.dtype) -> None:
    for n, d in cases.SHAPES:
        # Beyond float64 only the machine's extended precision knows better, slowly.
        if dtype == torch.float64 and n * d * min(n, d) > 3_000_000:
            continue
        x = (cases.normal(n, d) + 0.5).to(dtype)
        layouts = cases.layouts(x) if n * d < 10_000 else {"contiguous": x, "transposed": x.T.contiguous().T}
        layouts.pop("broadcast_columns", None)
        xs = [layout.to(device) for layout in layouts.values()]
        ours = ops.grouped_covariance(xs, backend="cuda")
        for name, layout, matrix, trace in zip(layouts, xs, ours.matrices, ours.traces.tolist(), strict=True):
            host = layout.cpu()
            exact = exact_covariance(host, n <= d)
            cases.assert_as_accurate_as_torch(matrix.cpu(), plain_covariance(host, n <= d), exact)
            assert torch.equal(matrix, matrix.T), (n, d, name)
            # The trace is float64 whatever the dtype: means and squares are.
            expected = plain_covariance(host.double(), n <= d).trace().item()
            assert trace == pytest.approx(expected, rel=1e-13, abs=1e-26), (n, d, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_covariance_reads_sixteen_bit_inputs_exactly(device: str, dtype: torch.dtype) -> None:
    xs = [cases.normal(n, d, dtype=dtype) for n, d in ((3, 5), (64, 576), (130, 33), (17, 2000))]
    xs[0].view(-1)[:3] = torch.tensor([6e-8, -0.0, 1e-39], dtype=dtype)
    for result in (torch.float32, torch.float64):
        on = [x.to(device) for x in xs]
        ours = ops.grouped_covariance(on, dtype=result, backend="cuda").matrices
        for x, matrix in zip(xs, ours, strict=True):
            by_rows = x.shape[0] <= x.shape[1]
            plain, exact = plain_covariance(x.to(result), by_rows), exact_covariance(x, by_rows)
            cases.assert_as_accurate_as_torch(matrix.cpu(), plain, exact)


def test_covariance_in_float64_on_large_tiles(device: str) -> None:
    # More than one chunk of samples, a diagonal tile and one off it, none of them full.
    x = cases.normal(260, 700)
    for layout in (x, x.T.contiguous().T):
        (ours,), _ = ops.grouped_covariance([layout.to(device)], backend="cuda")
        cases.assert_as_accurate_as_torch(ours.cpu(), plain_covariance(x, True), exact_covariance(x, True))
        assert torch.equal(ours, ours.T)


def test_covariance_where_a_block_has_little_shared_memory(emulator: ModuleType) -> None:
    emulator.set_device(99 << 10, False)
    x = cases.normal(260, 700)
    (ours, _), _ = ops.grouped_covariance([x, x.float()], backend="cuda")
    cases.assert_as_accurate_as_torch(ours, plain_covariance(x, True), exact_covariance(x, True))


def test_covariance_with_a_mean_far_above_the_deviations(device: str) -> None:
    x = (cases.normal(40, 300) + 3e4).float()
    (single,), _ = ops.grouped_covariance([x.to(device)], backend="cuda")
    exact = plain_covariance(x.double(), True)
    # The deviations are exact in float32; a mean in float32 alone would be off by 1e-3 of them.
    assert (single.cpu().double() - exact).abs().max() <= 100 * torch.finfo(
        torch.float32
    ).eps * exact.abs().max()


def test_covariance_of_a_layer_does_not_depend_on_the_others(device: str) -> None:
    xs = [cases.normal(n, d).float().to(device) for n, d in ((70, 5000), (300, 40), (20, 9), (300, 700))]
    together = ops.grouped_covariance(xs, backend="cuda").matrices
    for x, matrix in zip(xs, together, strict=True):
        (alone,), _ = ops.grouped_covariance([x], backend="cuda")
        assert torch.equal(matrix, alone)


def test_covariance_names_a_layer_that_is_not_finite(device: str) -> None:
    xs = [cases.normal(40, 50).to(device), cases.normal(33, 70).to(device)]
    xs[1][3, 69] = float("nan")
    with pytest.raises(ValueError, match=r"nan.*second"):
        ops.grouped_covariance(xs, names=["first", "second"], backend="cuda")
