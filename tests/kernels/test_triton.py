"""The Triton backend: run on a GPU or under Triton's interpreter, and compiled for sm_90 without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import kernels_cases as cases
from support.paths import ROOT, TESTS
from support.triton_process import FLAG, run_where_triton_is_not_loaded, triton_device

from slimfast.kernels import grouped_covariance, grouped_gather

# ``-m gpu`` is what an NVIDIA GPU is needed for.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
# More than one tile each way, a cut along k, both sides, sizes that divide nothing, and degenerate ones.
SHAPES = ((1, 1), (1, 7), (7, 1), (3, 2), (70, 131), (131, 70), (48, 64), (64, 48), (5, 1500))


@pytest.fixture(scope="module")
def device():
    """Where kernels run in this process."""
    yield from triton_device()


def test_kernels_in_a_process_of_their_own_where_triton_is_loaded():
    run_where_triton_is_not_loaded(__file__)


def gram_as_torch(x, dtype):
    """The smaller side's covariance as PyTorch computes it in this dtype."""
    centred = x.to(dtype) - x.to(dtype).mean(1, keepdim=True)
    left = centred if x.shape[0] <= x.shape[1] else centred.T
    return left @ left.T / max(x.shape[1] - 1, 1)


def exact_gram(x):
    """The smaller side's covariance in extended precision, rounded to float64."""
    wide = x.double().numpy().astype(np.longdouble)
    centred = wide - wide.mean(1, keepdims=True)
    left = centred if x.shape[0] <= x.shape[1] else centred.T
    denominator = max(x.shape[1] - 1, 1)
    gram, trace = left @ left.T / denominator, np.square(centred).sum() / denominator
    return torch.from_numpy(gram.astype(np.float64)), float(trace)


def assert_covariances(xs, dtype, device):
    names = [f"{tuple(x.shape)}" for x in xs]
    got = grouped_covariance([x.to(device) for x in xs], names=names, dtype=dtype, backend="triton")
    for x, ours, trace in zip(xs, got.matrices, got.traces.tolist(), strict=True):
        ours = ours.cpu()
        exact, exact_trace = exact_gram(x)
        cases.assert_as_accurate_as_torch(ours, gram_as_torch(x, dtype), exact)
        assert torch.equal(ours, ours.T)
        assert trace == pytest.approx(exact_trace, rel=4 * x.shape[1] * np.finfo(float).eps, abs=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_covariance_of_mixed_shapes(dtype, device):
    xs = [cases.normal(*shape, dtype=dtype) for shape in SHAPES]
    assert_covariances(xs, torch.float64 if dtype == torch.float64 else torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_covariance_of_any_strides(dtype, device):
    layouts = cases.layouts(cases.normal(40, 72, dtype=dtype))
    xs = [layouts[name] for name in ("transposed", "spaced", "offset", "broadcast_rows", "broadcast_columns")]
    assert_covariances(xs, torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_covariance_where_the_mean_is_large(dtype, device):
    xs = [(cases.normal(n, d) + mean).to(dtype) for n, d in ((20, 70), (70, 20)) for mean in (0.3, 100.0)]
    assert_covariances(xs, torch.float32, device)


def test_covariance_loses_nothing_to_a_mean_far_above_the_spread(device):
    for shape in ((20, 70), (70, 20)):
        x = (cases.normal(*shape) + 1e5).float()
        ours = grouped_covariance([x.to(device)], backend="triton").matrices[0].cpu()
        centred_in_float64 = (x.double() - x.double().mean(1, keepdim=True)).float()
        cases.assert_as_accurate_as_torch(
            ours, gram_as_torch(centred_in_float64, torch.float32), exact_gram(x)[0]
        )


def test_covariance_of_zero_and_constant_layers_is_zero(device):
    xs = [torch.zeros(3, 40), torch.full((40, 3), 0.1), torch.full((3, 40), 2.5).bfloat16()]
    got = grouped_covariance([x.to(device) for x in xs], backend="triton")
    assert all(not matrix.any() for matrix in got.matrices)
    assert not got.traces.any()


def test_covariance_of_rows_with_fewer_positions(device):
    x = cases.normal(70, 20, dtype=torch.float32)
    got = grouped_covariance([x.to(device)], side="rows", backend="triton").matrices[0].cpu()
    cases.assert_as_accurate_as_torch(got, torch.cov(x), torch.cov(x.double()))


def test_covariance_of_several_dtypes_in_one_call(device):
    xs = [cases.normal(20, 33, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    xs.append(cases.normal(9, 17, dtype=torch.float32))
    got = grouped_covariance([x.to(device) for x in xs], backend="triton")
    for x, ours, trace in zip(xs, got.matrices, got.traces, strict=True):
        alone = grouped_covariance([x.to(device)], backend="triton")
        assert torch.equal(ours, alone.matrices[0])
        assert trace == alone.traces[0]


def test_covariance_in_float64_of_16_bit_layers(device):
    xs = [cases.normal(20, 70, dtype=torch.bfloat16), cases.normal(70, 20, dtype=torch.float16)]
    assert_covariances(xs, torch.float64, device)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_covariance_refuses_what_is_not_finite(device):
    x = torch.ones(4, 6, device=device)
    x[2, 3] = float("inf")
    with pytest.raises(ValueError, match=r"expected finite values, got inf at \(2, 3\).*\(conv1\)"):
        grouped_covariance([x], names=["conv1"], backend="triton")


def kept(n: int, k: int) -> torch.Tensor:
    return torch.randperm(n, generator=cases.generator(n, k))[:k].sort().values


def assert_gathers(tensors, keeps, device):
    on_device = [t.to(device) for t in tensors]
    got = grouped_gather(on_device, keeps, backend="triton")
    want = grouped_gather(tensors, keeps, backend="reference")
    for ours, theirs in zip(got, want, strict=True):
        assert ours.is_contiguous()
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64], ids=str
)
def test_gather_of_every_element_size(dtype, device):
    conv, linear, bias = (10 * cases.normal(*shape) for shape in ((12, 10, 3, 3), (33, 65), (77,)))
    scalar = torch.tensor(3.0)
    tensors = [t.to(dtype) for t in (conv, conv, linear, linear, bias, scalar)]
    keeps = [{0: kept(12, 5), 1: kept(10, 7)}, {1: kept(10, 4)}, {0: kept(33, 20)}, {1: kept(65, 31)}]
    assert_gathers(tensors, [*keeps, {0: kept(77, 40)}, {}], device)


def test_gather_of_any_strides(device):
    conv, matrix = cases.normal(8, 6, 3, 4), cases.normal(20, 24)
    tensors = [
        conv.to(memory_format=torch.channels_last),
        conv[:, :, 1:, ::2],
        conv.permute(0, 2, 3, 1),
        matrix.T,
        matrix[3:, 1:],
        matrix[:1].expand(9, 24),
    ]
    keeps = [{0: kept(8, 3), 1: kept(6, 5)}, {1: kept(6, 2)}, {0: kept(8, 4), 3: kept(6, 3)}]
    assert_gathers(
        tensors, [*keeps, {0: kept(24, 10)}, {0: kept(17, 5), 1: kept(23, 9)}, {0: kept(9, 2)}], device
    )


def test_gather_of_nothing_and_of_everything(device):
    x = cases.normal(4, 6, dtype=torch.float32)
    nothing, everything = torch.zeros(0, dtype=torch.int64), torch.arange(4)
    assert_gathers([x, x, x], [{1: nothing}, {0: everything}, {0: everything, 1: kept(6, 3)}], device)
    assert_gathers([x], [{0: nothing}], device)


def test_gather_of_a_tensor_larger_than_a_slab(device, monkeypatch):
    from slimfast.kernels.backends.triton import gather_kernels

    monkeypatch.setattr(gather_kernels, "MOST_ELEMENTS", 50)
    x = cases.normal(3, 7, 11, dtype=torch.float32)
    assert_gathers([x, x], [{0: kept(3, 2), 2: kept(11, 9)}, {1: kept(7, 6)}], device)


def test_gather_divides_exactly(device):
    from slimfast.kernels.backends.triton.gather_kernels import _divider

    numbers = np.unique(np.concatenate([2 ** np.arange(31) + offset for offset in (-1, 0, 1)]))
    numbers = numbers[(numbers >= 0) & (numbers < 2**31)].tolist()
    for length in [n for n in numbers if n > 1] + list(range(2, 2000)):
        multiplier, shift = _divider(length)
        assert multiplier < 2**32
        for number in [*numbers, 3 * length - 1, 3 * length, 2**31 - 1 - (2**31 % length)]:
            if number < 2**31:
                assert ((number * multiplier) >> 32) >> shift == number // length


def test_compiled_for_sm_90_in_a_process():
    """wgmma from 16-byte asynchronous copies, chunks from zero, nothing spilled, shared memory in budget."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != FLAG}
    command = [sys.executable, TESTS / "support" / "triton_compile.py"]
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert kernels["gram bf16"]["wgmma"] == ["f32.bf16.bf16"]
    assert kernels["gram f32"]["wgmma"] == ["f32.tf32.tf32"]
    assert kernels["gram f64"]["mma"] == ["f64.f64.f64.f64"]
    for name in ("gram bf16", "gram f32", "gram f64"):
        assert kernels[name]["wide_copies"] > 0, name
    # A constant, not the tile so far: tensor cores truncate, and a long accumulation would be biased.
    assert kernels["gram bf16"]["starts"] == ["cst"] * 3
    # The small parts first, then the large ones on top: three products a chunk, the first from zero.
    assert kernels["gram f32"]["starts"] == ["cst", "tile", "tile"] * 3
    for name, kernel in kernels.items():
        assert kernel["shared"] <= 227 * 1024, name
    # One loop for each way the operands may lie. float64 has a kernel of its own in CUDA C++.
    assert kernels["gram bf16"]["spilled_in_products"] == [0.0] * 3
    assert len(kernels["gram f32"]["spilled_in_products"]) == 3
    assert max(kernels["gram f32"]["spilled_in_products"]) < 0.01
    for name in ("moments", "summary", "sum", "gather", "means", "panel", "update", "backward"):
        assert kernels[name]["stack"] == 0, name
    assert kernels["update"]["mma"] == ["f64.f64.f64.f64"]
    assert kernels["products f32"]["wgmma"] == ["f32.tf32.tf32"]
    assert kernels["products f64"]["mma"] == ["f64.f64.f64.f64"]
    assert kernels["products bf16"]["wgmma"] == ["f32.bf16.bf16"]
    # Here too each chunk starts from zero.
    assert kernels["products bf16"]["starts"] == ["cst"]
    assert kernels["products f32"]["starts"] == ["cst", "product", "product"]
    assert max(kernels["products f32"]["spilled_in_products"]) < 0.03
    for name in ("products bf16", "products f64"):
        assert kernels[name]["spilled_in_products"] == [0.0], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_covariance_of_a_layer_does_not_depend_on_the_others(dtype, device):
    # In large tiles and in small ones, whole and cut along k, either side.
    shapes = ((260, 300), (40, 1100), (520, 30), (9, 4))
    xs = [cases.normal(*shape, dtype=dtype).to(device) for shape in shapes]
    together = grouped_covariance(xs, backend="triton").matrices
    for x, matrix in zip(xs, together, strict=True):
        assert torch.equal(grouped_covariance([x], backend="triton").matrices[0], matrix)
    for x, matrix in zip(xs[:2], together, strict=False):
        exact = torch.cov(x.double())
        assert torch.allclose(matrix.double(), exact, atol=1e-4 * float(exact.abs().max()))
