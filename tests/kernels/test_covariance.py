"""grouped_covariance: every backend against higher precision, torch.cov and the naming of bad layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from support import kernels_cases as cases
from support.covariances import JOINT, exact_covariance, plain_covariance
from torch import Tensor

from slimfast.kernels.backends import cpu, reference
from slimfast.kernels.backends.contract import member_by_member
from slimfast.kernels.ops import grouped_covariance

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float32, torch.float64)
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_accuracy_for_every_layout(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    n, d = shape
    layouts = cases.layouts((cases.normal(n, d) + 0.5).to(dtype))
    layouts.pop("broadcast_columns")
    result = grouped_covariance(list(layouts.values()), backend=backend)
    by_rows = n <= d
    # All layouts but the last hold the same values.
    same = exact_covariance(layouts["contiguous"], by_rows)
    broadcast = exact_covariance(layouts["broadcast_rows"], by_rows)
    for (name, x), ours, trace in zip(layouts.items(), result.matrices, result.traces.tolist(), strict=True):
        exact = broadcast if name == "broadcast_rows" else same
        cases.assert_as_accurate_as_torch(ours, plain_covariance(x, by_rows), exact)
        # The reference multiplies both triangles; compiled backends copy one to the other.
        assert backend == "reference" or torch.equal(ours, ours.T), name
        if dtype == torch.float32:
            # Each centred value is rounded at most twice before it is squared.
            assert abs(trace - exact.trace()) <= 2 * torch.finfo(dtype).eps * exact.trace(), name
        else:
            plain = (x - x.mean(1, keepdim=True)).square().sum() / max(d - 1, 1)
            cases.assert_as_accurate_as_torch(torch.tensor(trace, dtype=dtype), plain, exact.trace())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_side_equals_torch_cov(dtype: torch.dtype, backend: str) -> None:
    xs = [cases.normal(n, d, dtype=dtype) for n, d in ((1, 2), (40, 9), (33, 70), (130, 65))]
    ours = grouped_covariance(xs, side="rows", backend=backend)
    for x, matrix in zip(xs, ours.matrices, strict=True):
        expected = torch.cov(x).reshape(x.shape[0], x.shape[0])
        cases.assert_as_accurate_as_torch(matrix, expected, exact_covariance(x, True))


@pytest.fixture(params=["reference", "cpu", "one at a time"])
def joint_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backends that take several members, and one that is given them one after another."""
    if request.param == "one at a time":
        monkeypatch.setattr(cpu, "joint_covariance", partial(member_by_member, reference.covariance))
        return "cpu"
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "columns"), JOINT)
def test_members_count_as_one_matrix_side_by_side(
    n: int, columns: tuple[int, ...], dtype: torch.dtype, joint_backend: str
) -> None:
    # Means that differ from one member to the next: each is centred on its own.
    members = [(cases.normal(n, d) + 3 * i).to(dtype) for i, d in enumerate(columns)]
    members[-1] = members[-1].T.contiguous().T
    alone = cases.normal(9, 40, dtype=dtype)
    found = grouped_covariance([members, alone], backend=joint_backend)
    centred = torch.cat([x - x.mean(1, keepdim=True) for x in members], 1)
    denominator = max(sum(columns) - 1, 1)
    shares = [max(d - 1, 1) / denominator for d in columns]
    expected = torch.stack(
        [exact_covariance(x, True, extended=True) * share for x, share in zip(members, shares, strict=True)]
    ).sum(0)
    cases.assert_as_accurate_as_torch(found.matrices[0], centred @ centred.T / denominator, expected)
    cases.assert_as_accurate_as_torch(
        found.matrices[1], plain_covariance(alone, True), exact_covariance(alone, True)
    )
    assert found.traces[0].item() == pytest.approx(expected.trace().item(), rel=8 * torch.finfo(dtype).eps)


def test_members_of_several_dtypes() -> None:
    members = [cases.normal(6, 50, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    assert grouped_covariance([members[:2]], backend="cpu").matrices[0].dtype == torch.float32
    (ours,), _ = grouped_covariance([members], backend="cpu")
    (exact,), _ = grouped_covariance([[x.double() for x in members]], backend="reference")
    assert ours.dtype == torch.float64
    assert (ours - exact).abs().max() <= 1e-14


def test_a_member_is_named(joint_backend: str) -> None:
    good, bad = cases.normal(8, 30), cases.normal(8, 20)
    bad[3, 2] = float("nan")
    for names, told in (["stream"], "stream, member 1"), ([["a.weight", "b.weight"]], "b.weight"):
        with pytest.raises(ValueError, match=rf"got nan at \(3, 2\), 1 in all \({told}\)"):
            grouped_covariance([[good, bad]], names=names, backend=joint_backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_members_are_refused() -> None:
    x = cases.normal(8, 30)
    with pytest.raises(ValueError, match=r"expected members of 8 rows, got 30 \(layer 1, member 1\)"):
        grouped_covariance([x, [x, x.T]])
    with pytest.raises(ValueError, match=r"expected one or more members, each named, got 0 \(layer 0\)"):
        grouped_covariance([[]])
    with pytest.raises(ValueError, match="expected one or more members, each named, got 2"):
        grouped_covariance([[x, x]], names=[["a"]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_rows_have_no_variance(backend: str) -> None:
    x = torch.arange(1.0, 6.0)[:, None].expand(5, 300)
    result = grouped_covariance([x, x.double()], backend=backend)
    for matrix in result.matrices:
        assert torch.equal(matrix, torch.zeros_like(matrix))
    assert result.traces.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 300), (300, 40)])
def test_mean_far_above_deviation(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    x = (cases.normal(*shape) + 3e4).to(dtype)
    (ours,), _ = grouped_covariance([x], backend=backend)
    by_rows = shape[0] <= shape[1]
    exact = exact_covariance(x, by_rows)
    cases.assert_as_accurate_as_torch(ours, plain_covariance(x, by_rows), exact)
    # The deviations themselves are exact in this dtype. The reference takes its mean in one float64 pass.
    if backend != "reference" or dtype != torch.float64:
        assert (ours.double() - exact).abs().max() <= 100 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (64, 576), (130, 33), (17, 4000)])
def test_sixteen_bit_inputs_are_read_exactly(
    shape: tuple[int, int], dtype: torch.dtype, backend: str
) -> None:
    x = cases.normal(*shape, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([6e-8, -0.0, 1e-39], dtype=dtype)
    by_rows = shape[0] <= shape[1]
    for layout in (x, x.T.contiguous().T):
        (single,), _ = grouped_covariance([layout], backend=backend)
        (double,), _ = grouped_covariance([layout], backend=backend, dtype=torch.float64)
        exact = exact_covariance(x, by_rows, extended=True)
        cases.assert_as_accurate_as_torch(single, plain_covariance(x.float(), by_rows), exact)
        cases.assert_as_accurate_as_torch(double, plain_covariance(x.double(), by_rows), exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_input_for_a_float32_result_is_centred_in_float64(backend: str) -> None:
    x = cases.normal(20, 200) + 1e9
    (ours,), _ = grouped_covariance([x], dtype=torch.float32, backend=backend)
    exact = exact_covariance(x, True)
    assert ours.dtype == torch.float32
    assert (ours.double() - exact).abs().max() <= 8 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [(0, 0), (36, 129), (12, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_names_its_layer(
    dtype: torch.dtype, at: tuple[int, int], bad: float, backend: str
) -> None:
    x = cases.normal(37, 130, dtype=dtype)
    x[at] = bad
    message = rf"expected finite values, got {bad} at \({at[0]}, {at[1]}\), 1 in all \(conv2\)"
    with pytest.raises(ValueError, match=message):
        grouped_covariance([cases.normal(8, 8), x], names=["conv1", "conv2"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 3, 4)])
def test_a_wrong_shape_names_its_layer(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"covariance: expected shape .*\(fc\)"):
        grouped_covariance([torch.zeros(shape)], names=["fc"])


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_wrong_argument_is_refused() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="side"):
        grouped_covariance([x], side="columns")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        grouped_covariance([x], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected 1 names, got 2"):
        grouped_covariance([x], names=["a", "b"])
    with pytest.raises(ValueError, match=r"torch.int64 \(layer 0\)"):
        grouped_covariance([x.long()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_group_and_untouched_inputs(backend: str) -> None:
    assert grouped_covariance([], backend=backend).matrices == []
    x = cases.normal(30, 50, dtype=torch.float32)
    before = x.clone()
    grouped_covariance([x, x.T], backend=backend)
    assert torch.equal(x, before)


def test_the_number_of_threads_changes_no_bit(threads: Threads) -> None:
    xs = [cases.normal(n, d, dtype=torch.float32) for n, d in ((400, 900), (64, 40000), (8, 8), (800, 300))]
    xs = [*xs, [cases.normal(64, d, dtype=torch.float32) for d in (300, 20000, 64)]]
    with threads(1):
        alone = grouped_covariance(xs, backend="cpu")
    with threads(3):
        together = grouped_covariance(xs, backend="cpu")
    assert torch.equal(alone.traces, together.traces)
    assert all(torch.equal(a, b) for a, b in zip(alone.matrices, together.matrices, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(500, 900), (900, 500), (1000, 1100), (90, 9000)])
def test_a_layer_is_the_same_alone_and_among_others(
    shape: tuple[int, int], dtype: torch.dtype, threads: Threads
) -> None:
    """What a layer is cut into follows from the threads and its neighbours; its bits do not."""
    n, d = shape
    x = cases.normal(n, d, dtype=dtype)
    with threads(1):
        expected = grouped_covariance([x], backend="cpu")
    cases.assert_as_accurate_as_torch(
        expected.matrices[0], plain_covariance(x, n <= d), exact_covariance(x, n <= d, extended=False)
    )
    for count, others in ((2, []), (7, []), (7, [cases.normal(700, 2000, dtype=torch.float32)] * 3)):
        with threads(count):
            found = grouped_covariance([*others, x], backend="cpu")
        assert torch.equal(found.matrices[-1], expected.matrices[0])
        assert found.traces[-1] == expected.traces[0]


def test_several_python_threads_at_once(threads: Threads) -> None:
    xs = [cases.normal(n, 500, dtype=torch.float32) for n in (30, 64, 200)]
    expected = grouped_covariance(xs, backend="cpu")
    results: list[Tensor] = []

    def work() -> None:
        for _ in range(5):
            results.extend(grouped_covariance(xs, backend="cpu").matrices)

    with threads(2):
        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(results) == 45
    for i, matrix in enumerate(results):
        assert torch.equal(matrix, expected.matrices[i % 3])
