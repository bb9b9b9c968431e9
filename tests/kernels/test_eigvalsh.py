"""grouped_eigvalsh: accuracy against float64 over every kind of spectrum, layouts, scales and bad input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from support import kernels_cases as cases
from support.eigenvalues import assert_group_as_accurate, torch_and_float64

from slimfast.kernels.ops import grouped_eigvalsh

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float32, torch.float64)
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", cases.SIZES)
def test_accuracy_over_kinds_of_spectra(m: int, dtype: torch.dtype, backend: str) -> None:
    kinds = cases.SYMMETRIC if m <= 129 else ("wishart", "layer_like", "graded", "repeated", "rank_one")
    mats = [cases.SYMMETRIC[kind](m).to(dtype) for kind in kinds]
    same, exact = torch_and_float64(mats)
    # Sums of float64 values would need a reference with more digits.
    sums = dtype == torch.float32
    assert_group_as_accurate(grouped_eigvalsh(mats, backend=backend), same, exact, sums=sums)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", cases.SIZES)
def test_accuracy_where_the_eigenvalues_are_known_exactly(m: int, dtype: torch.dtype, backend: str) -> None:
    anything = torch.randint(1, 1000, (m,), generator=cases.generator(m)).double()
    index = torch.arange(m)
    spectra = [anything, 7.0 * (index % 3 == 0), 1.0 + index, 100.0 * (index == 0) + index % 2]
    exact = [s.double().sort().values for s in spectra]
    mats = [cases.exactly_known(s.double()).to(dtype) for s in spectra]
    same = [torch.linalg.eigvalsh(mat) for mat in mats]
    assert_group_as_accurate(grouped_eigvalsh(mats, backend=backend), same, exact, sums=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", cases.HUGE_SIZES)
def test_accuracy_of_huge_matrices(m: int, dtype: torch.dtype) -> None:
    x = cases.normal(m, m + 7)
    x[:, ::3] *= 30
    mats = [(x @ x.T / m).to(dtype)]
    same, exact = torch_and_float64(mats)
    assert_group_as_accurate(grouped_eigvalsh(mats, backend="cpu"), same, exact, sums=dtype == torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 32, 40, 130, 300])
def test_known_eigenvalues(m: int, dtype: torch.dtype, backend: str) -> None:
    second_difference = cases.tridiagonal(m).to(dtype)
    diagonal = torch.diag(torch.arange(m, 0, -1).to(dtype))
    zero = torch.zeros(m, m, dtype=dtype)
    ours = grouped_eigvalsh([second_difference, diagonal, zero], backend=backend)
    angles = torch.arange(1, m + 1).double() * torch.pi / (m + 1)
    eps = torch.finfo(dtype).eps
    assert (ours[0].double() - (2 - 2 * angles.cos())).abs().max() <= 8 * 4 * eps
    assert (ours[1].double() - torch.arange(1.0, m + 1)).abs().max() <= 8 * m * eps
    assert torch.equal(ours[2], zero[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [7, 33, 150])
def test_layouts_and_only_the_lower_triangle(m: int, dtype: torch.dtype, backend: str) -> None:
    mat = cases.wishart(m).to(dtype)
    (expected,) = grouped_eigvalsh([mat], backend=backend)
    layouts = cases.layouts(mat)
    same = [layouts[name] for name in ("contiguous", "transposed", "spaced", "offset")]
    same.append(mat.tril() + torch.full_like(mat, float("nan")).triu(1))
    for values in grouped_eigvalsh(same, backend=backend):
        assert torch.equal(values, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_and_dtypes_mixed_in_one_call(backend: str) -> None:
    sizes = [3, 200, 1, 64, 17, 17, 130, 31, 32, 2, 9, 24]
    mats = [cases.wishart(m).to(DTYPES[i % 2]) for i, m in enumerate(sizes)]
    together = grouped_eigvalsh(mats, backend=backend)
    for mat, values in zip(mats, together, strict=True):
        exact = torch.linalg.eigvalsh(mat.double())
        eps = torch.finfo(mat.dtype).eps
        assert (values.double() - exact).abs().max() <= 2 * mat.shape[0] ** 0.5 * eps * exact.max() + 2 * eps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 16, 33, 70])
def test_a_stack_is_the_same_bit_for_bit(m: int, dtype: torch.dtype, backend: str) -> None:
    stack = torch.stack([cases.wishart(m) * (i + 1) for i in range(11)]).to(dtype)
    expected = torch.stack(grouped_eigvalsh(list(stack), backend=backend))
    spaced = stack.new_full((22, m + 2, m + 1), float("nan"))
    spaced[::2, 1:-1, 1:] = stack
    for layout in (stack, stack.mT.contiguous().mT, spaced[::2, 1:-1, 1:], stack.flip(0)[5:].flip(0)):
        values = grouped_eigvalsh(layout, backend=backend)
        assert torch.equal(values, expected[: len(layout)])
    everywhere = grouped_eigvalsh(stack[2].expand(4, m, m), backend=backend)
    assert torch.equal(everywhere, expected[2].expand(4, m))
    assert grouped_eigvalsh(stack[:0], backend=backend).shape == (0, m)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_matrix_of_a_stack_is_named(backend: str) -> None:
    stack = cases.wishart(5).expand(4, 5, 5).clone()
    stack[2, 3, 1] = float("inf")
    with pytest.raises(ValueError, match=r"got inf at \(3, 1\), 1 in all \(layer 2\)"):
        grouped_eigvalsh(stack, backend=backend)
    with pytest.raises(ValueError, match=r"\(c\)"):
        grouped_eigvalsh(stack, names="abcd", backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3, 4), (2, 0, 0), (1, 2, 3, 3)])
def test_a_stack_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a stack of square matrices, got shape"):
        grouped_eigvalsh(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected float32 or float64, got torch.int64"):
        grouped_eigvalsh(torch.zeros(2, 3, 3, dtype=torch.int64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 20, 33, 200])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_its_layer(
    bad: float, m: int, dtype: torch.dtype, backend: str
) -> None:
    mat = cases.wishart(m).to(dtype)
    mat[m - 1, m // 2] = bad
    mat[m // 2, m - 1] = bad
    with pytest.raises(ValueError, match=rf"expected finite values, got {bad} .*\(conv2\)"):
        grouped_eigvalsh([cases.wishart(m).to(dtype), mat], names=["conv1", "conv2"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_wrong_shape_or_dtype_names_its_layer() -> None:
    for bad in (torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"eigvalsh: expected a square matrix.*\(fc\)"):
            grouped_eigvalsh([bad], names=["fc"])
    with pytest.raises(ValueError, match=r"bfloat16 \(fc\)"):
        grouped_eigvalsh([torch.zeros(2, 2, dtype=torch.bfloat16)], names=["fc"])


def test_an_empty_group() -> None:
    assert grouped_eigvalsh([]) == []


def test_inputs_are_untouched() -> None:
    mats = [cases.wishart(m) for m in (20, 70)]
    before = [m.clone() for m in mats]
    grouped_eigvalsh(mats, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(mats, before, strict=True))


def test_the_number_of_threads_changes_no_bit(threads: Threads) -> None:
    mats = [cases.wishart(m).float() for m in (500, 20, 20, 65, 130, 7, 33)]
    with threads(1):
        alone = grouped_eigvalsh(mats, backend="cpu")
    with threads(3):
        together = grouped_eigvalsh(mats, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("m", "dtype"), [(1300, torch.float32), (1057, torch.float64)])
@pytest.mark.parametrize("team", [2, 5])
def test_a_team_on_one_large_matrix_changes_no_bit(
    m: int, dtype: torch.dtype, team: int, threads: Threads
) -> None:
    mat = cases.wishart(m).to(dtype)
    with threads(1):
        (alone,) = grouped_eigvalsh([mat], backend="cpu")
    with threads(team):
        (together,) = grouped_eigvalsh([mat], backend="cpu")
    assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_matrices_with_little_to_reduce(dtype: torch.dtype) -> None:
    m = 1300
    mats = [
        torch.zeros(m, m),
        torch.eye(m),
        torch.ones(m, m),
        torch.diag(torch.arange(1.0, m + 1)),
        cases.tridiagonal(m),
        torch.block_diag(torch.ones(700, 700), torch.eye(m - 700)),
    ]
    angles = torch.arange(1, m + 1).double() * torch.pi / (m + 1)
    index = torch.arange(m)
    exact = [
        torch.zeros(m).double(),
        torch.ones(m).double(),
        m * (index == m - 1).double(),
        torch.arange(1.0, m + 1).double(),
        2 - 2 * angles.cos(),
        1.0 * (index >= 699) + 699.0 * (index == m - 1),
    ]
    same = [torch.linalg.eigvalsh(mat.to(dtype)) for mat in mats]
    ours = grouped_eigvalsh([mat.to(dtype) for mat in mats], backend="cpu")
    assert_group_as_accurate(ours, same, exact, sums=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.3, 0.03])
def test_large_matrices_see_entries_far_below_their_column_s_first(dtype: torch.dtype, share: float) -> None:
    """The square of such an entry is lost beside that of the first, the entry itself must not be: it couples
    chains of the same eigenvalues.
    """
    m = 1300
    far = 1 + torch.arange(m - 32) // 32 / 64
    near = share * torch.finfo(dtype).eps ** 0.5 * torch.ones(m - 33)
    lower = torch.diag(far.to(dtype), -32) + torch.diag(near.to(dtype), -33)
    mat = lower + lower.T
    same, exact = torch_and_float64([mat])
    assert_group_as_accurate(grouped_eigvalsh([mat], backend="cpu"), same, exact, sums=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_matrix_that_is_not_finite_is_refused(dtype: torch.dtype) -> None:
    mat = torch.eye(1300, dtype=dtype)
    mat[1200, 40] = mat[40, 1200] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite values, got nan at \(40, 1200\), 2 in all \(fc\)"):
        grouped_eigvalsh([mat], names=["fc"], backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_has_the_same_values_in_any_company(dtype: torch.dtype) -> None:
    mats = [cases.wishart(m).to(dtype) for m in (12, 12, 30, 31, 4)]
    mats += [cases.SYMMETRIC[kind](24).to(dtype) for kind in cases.SYMMETRIC]
    together = grouped_eigvalsh(mats, backend="cpu")
    for mat, values in zip(mats, together, strict=True):
        assert torch.equal(grouped_eigvalsh([mat], backend="cpu")[0], values)
