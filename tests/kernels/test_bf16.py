"""Covariances of bfloat16 weights from vdpbf16ps and tdpbf16ps: the instructions, or the same emulated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from support import kernels_cases as cases
from support.covariances import JOINT, exact_covariance, plain_covariance
from support.cpu_fixtures import emulated_isas, native_isas, use_emulated
from torch import Tensor

from slimfast.kernels.backends import cpu

BF16 = torch.bfloat16
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(
    params=[
        *(isa for isa in native_isas() if isa in ("avx512_bf16", "amx")),
        *(f"{isa} emulated" for isa in ("avx512_bf16", "amx")),
    ]
)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two instructions in turn, as ``isa=`` of the CPU backend."""
    name, _, emulated = str(request.param).partition(" ")
    if emulated:
        use_emulated(monkeypatch)
        assert name in emulated_isas()
    return name


def covariance(x: Tensor, isa: str) -> Tensor:
    """Of the smaller side, in float32."""
    (matrix,), _ = cpu.covariance([x], [x.shape[0] <= x.shape[1]], [torch.float32], isa=isa)
    return matrix


def assert_accurate(ours: Tensor, x: Tensor) -> None:
    by_rows = x.shape[0] <= x.shape[1]
    cases.assert_as_accurate_as_torch(
        ours, plain_covariance(x.float(), by_rows), exact_covariance(x, by_rows)
    )


# Around panels of 16 variables, cells of 32 samples and chains of 4 and 8 cells, blocks of 768 variables.
SHAPES = (
    *((16, 160), (17, 255), (31, 256), (32, 257), (33, 400), (47, 127), (49, 513), (64, 576), (65, 20011)),
    *((160, 16), (255, 17), (256, 31), (257, 32), (400, 33), (520, 500), (770, 790)),
)


@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy_for_every_layout(shape: tuple[int, int], isa: str) -> None:
    x = cases.normal(*shape, dtype=BF16)
    layouts = cases.layouts(x)
    first = covariance(x, isa)
    assert_accurate(first, x)
    assert torch.equal(first, first.T)
    # The path is that of the instruction: float32 sums up in another order.
    assert not torch.equal(first, covariance(x, "avx2" if "avx2" in native_isas() else "baseline"))
    for name in ("transposed", "spaced", "offset"):
        assert torch.equal(covariance(layouts[name], isa), first), name


def of_tiles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What tdpbf16ps sums up: 16 even and 16 odd products each in a row, both together added to the sum."""
    total = np.float32(0)
    for cell in range(0, len(left), 32):
        chains = [np.float32(0), np.float32(0)]
        for i in range(32):
            # float64 holds a product and a sum of these sizes exactly, so that this is one rounding.
            chains[i % 2] = np.float32(np.float64(chains[i % 2]) + left[cell + i] * right[cell + i])
        total = np.float32(total + np.float32(chains[0] + chains[1]))
    return total


def of_registers(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What vdpbf16ps sums up: of each pair the odd product first."""
    total = np.float32(0)
    for pair in range(0, len(left), 2):
        for i in (pair + 1, pair):
            total = np.float32(np.float64(total) + left[i] * right[i])
    return total


def test_the_order_and_rounding_of_the_instruction(isa: str) -> None:
    # Means of exactly zero and a power of two for a divisor leave the sums alone; 65 samples are one chain.
    half = cases.normal(5, 32, dtype=BF16)
    x = torch.cat([half, torch.zeros(5, 1, dtype=BF16), -half.flip(1)], 1)
    values = torch.nn.functional.pad(x.double(), (0, 31)).numpy()
    sum_up = of_tiles if isa == "amx" else of_registers
    expected = [[sum_up(a, b) / np.float32(64) for b in values] for a in values]
    assert torch.equal(covariance(x, isa), torch.tensor(expected, dtype=torch.float32))


def test_subnormal_products_are_zero(isa: str) -> None:
    x = torch.zeros(2, 128, dtype=BF16)
    x[0, :2] = torch.tensor([1.0, -1.0])
    x[1, 2:4] = torch.tensor([2.0**-70, -(2.0**-70)])
    matrix = covariance(x, isa)
    assert matrix[0, 0] == 2 / torch.tensor(127.0)
    assert torch.equal(matrix.view(-1)[1:], torch.zeros(3))


def test_a_mean_just_within_the_share(isa: str) -> None:
    for shape in ((48, 700), (700, 48)):
        x = (cases.normal(*shape) + 0.3).to(BF16)
        assert_accurate(covariance(x, isa), x)


def float32_alone(name: str, shape: tuple[int, int]) -> Tensor:
    x = cases.normal(*shape)
    if name == "mean":
        x += 1.0
    elif name == "mean of one row":
        x[7] += 10.0
    elif name == "tiny":
        x *= 2.0**-60
    elif name == "huge":
        x *= 2.0**60
    elif name == "zero":
        x[:] = 0
    elif name == "constant rows":
        x[:] = torch.arange(len(x))[:, None]
    return x.to(BF16)


@pytest.mark.parametrize("name", ["mean", "mean of one row", "tiny", "huge", "zero", "constant rows"])
def test_what_would_lose_digits_is_left_to_float32(name: str, isa: str) -> None:
    for shape in ((40, 300), (300, 40)):
        x = float32_alone(name, shape)
        assert torch.equal(covariance(x, isa), covariance(x, "avx512"))


def test_not_finite_stays_so(isa: str) -> None:
    for bad in (float("nan"), float("inf")):
        x = cases.normal(40, 300, dtype=BF16)
        x[3, 5] = bad
        assert not bool(covariance(x, isa)[3].isfinite().any())


@pytest.mark.parametrize(("n", "columns"), JOINT)
def test_members(n: int, columns: tuple[int, ...], isa: str) -> None:
    members = [cases.normal(n, d, dtype=BF16) for d in columns]
    members[-1] = members[-1].T.contiguous().T
    (ours,), traces = cpu.joint_covariance([members], [True], [torch.float32], isa=isa)
    wide = torch.cat([x.double() - x.double().mean(1, keepdim=True) for x in members], 1)
    same = torch.cat([x.float() - x.float().mean(1, keepdim=True) for x in members], 1)
    divisor = max(sum(columns) - 1, 1)
    exact = wide @ wide.T / divisor
    cases.assert_as_accurate_as_torch(ours, same @ same.T / divisor, exact)
    assert traces[0].item() == pytest.approx(exact.trace().item(), rel=4 * torch.finfo(torch.float32).eps)


def test_the_trace_is_float64(isa: str) -> None:
    for shape in ((64, 576), (576, 64)):
        x = cases.normal(*shape, dtype=BF16)
        _, traces = cpu.covariance([x], [shape[0] <= shape[1]], [torch.float32], isa=isa)
        exact = x.double().var(1).sum()
        assert traces[0].item() == pytest.approx(exact.item(), rel=2 * torch.finfo(torch.float32).eps)


def test_the_number_of_threads_changes_no_bit(isa: str, threads: Threads) -> None:
    xs = [cases.normal(n, d, dtype=BF16) for n, d in ((48, 20000), (400, 300), (20, 130))]
    with threads(1):
        alone = [covariance(x, isa) for x in xs]
    with threads(3):
        together = [covariance(x, isa) for x in xs]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_layer_of_several_dtypes_is_left_to_float32(isa: str) -> None:
    members = [cases.normal(20, 130, dtype=BF16), cases.normal(20, 140, dtype=torch.float32)]
    (ours,), _ = cpu.joint_covariance([members], [True], [torch.float32], isa=isa)
    (plain,), _ = cpu.joint_covariance([members], [True], [torch.float32], isa="avx512")
    assert torch.equal(ours, plain)
