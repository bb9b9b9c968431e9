"""grouped_moments: every backend against more digits; batches that join, masks, bad layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from support import kernels_cases as cases
from support.moments_cases import SHAPES, assert_accurate, columns_of, exact_moments

from slimfast.kernels import Moments, grouped_moments

DTYPES = (torch.float32, torch.float64)
Threads = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_accuracy(shape: tuple[int, ...], dim: int, dtype: torch.dtype, backend: str) -> None:
    x = (cases.normal(*shape) + 0.5).to(dtype)
    (found,) = grouped_moments([x], dims=dim, backend=backend)
    assert_accurate(found, columns_of(x, dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (65, 129), (24, 700)])
def test_every_layout(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    layouts = list(cases.layouts((cases.normal(*shape) + 0.5).to(dtype)).values())
    for dims in (0, 1):
        for x, found in zip(layouts, grouped_moments(layouts, dims=dims, backend=backend), strict=True):
            assert_accurate(found, columns_of(x, dims))


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_permuted_and_spaced_positions(dim: int, backend: str) -> None:
    dense = cases.normal(6, 10, 14, 9)
    for x in (
        dense.permute(3, 0, 2, 1),
        dense[::2, 1::3, :, 2:7],
        dense.contiguous(memory_format=torch.channels_last),
    ):
        (found,) = grouped_moments([x], dims=dim, backend=backend)
        assert_accurate(found, columns_of(x, dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 3e4])
def test_batches_join_to_what_all_of_them_have(mean: float, dtype: torch.dtype, backend: str) -> None:
    batches = [
        (cases.normal(s, 20, 12) * (i + 1) + mean * (1 + i)).to(dtype) for i, s in enumerate((1, 3, 40, 2))
    ]
    moments = None
    for batch in batches:
        before = moments
        moments = grouped_moments([batch], dims=-1, into=moments, backend=backend)
        assert before is None or moments[0] is before[0]
    assert moments is not None
    assert_accurate(moments[0], columns_of(torch.cat(batches), -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 300), (12, 30000), (700, 60)])
def test_mean_far_above_deviation(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    x = (cases.normal(*shape) + 3e4).to(dtype)
    exact = exact_moments(x)
    for layout, dim in ((x, 0), (x.T.contiguous(), 1)):
        (found,) = grouped_moments([layout], dims=dim, backend=backend)
        assert_accurate(found, x)
        # The deviations themselves are exact in float32. The reference takes its mean in one float64 pass.
        if backend != "reference" or dtype != torch.float64:
            error = (found.squares - exact.squares).abs().max()
            assert error <= 100 * torch.finfo(dtype).eps * exact.squares.abs().max()


def test_constant_variables_have_no_squares(backend: str) -> None:
    x = torch.arange(1.0, 6.0)[:, None].expand(5, 3000) * 1e3
    (found,) = grouped_moments([x], backend=backend)
    (found,) = grouped_moments([x], into=[found], backend=backend)
    assert torch.equal(found.squares, torch.zeros_like(found.squares))
    assert torch.equal(found.mean, x[:, 0].double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 0), ((64, 576), 1), ((5, 130, 33), 1), ((17, 4000), 0)])
def test_sixteen_bit_inputs_are_read_exactly(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, backend: str
) -> None:
    x = cases.normal(*shape, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([6e-8, -0.0, 1e-39], dtype=dtype)
    for products in DTYPES:
        (found,) = grouped_moments([x], dims=dim, dtype=products, backend=backend)
        assert_accurate(found, columns_of(x, dim).to(products))


def test_float64_input_with_float32_products_is_centred_in_float64(backend: str) -> None:
    x = cases.normal(20, 200) + 1e9
    (found,) = grouped_moments([x], dtype=torch.float32, backend=backend)
    exact = exact_moments(x)
    assert (found.squares - exact.squares).abs().max() <= 8 * torch.finfo(
        torch.float32
    ).eps * exact.squares.abs().max()


def masks_of(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Padding at the right, single positions, hardly any, all of them and none."""
    count = torch.Size(shape).numel()
    scattered = torch.rand(shape, generator=cases.generator(*shape)) < 0.4
    lengths = torch.arange(shape[0]) * shape[-1] // max(shape[0] - 1, 1)
    padded = (torch.arange(shape[-1]) < lengths.reshape(-1, *[1] * (len(shape) - 1))).expand(shape)
    one = torch.zeros(count, dtype=torch.bool)
    one[count // 2] = True
    return {
        "padded": padded,
        "scattered": scattered,
        "one": one.reshape(shape),
        "all": torch.ones(shape, dtype=torch.bool),
        "none": torch.zeros(shape, dtype=torch.bool),
    }


@pytest.mark.parametrize("kind", ["padded", "scattered", "one", "all", "none"])
@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 60, 24), -1), ((7, 33, 40), 1), ((3, 70, 9, 11), 1), ((8, 2000), 0)]
)
def test_positions_that_do_not_count(shape: tuple[int, ...], dim: int, kind: str, backend: str) -> None:
    x = cases.normal(*shape, dtype=torch.float32) + 2.0
    mask = masks_of(tuple(x.movedim(dim, 0).shape[1:]))[kind]
    # What is not read may be anything.
    x.movedim(dim, 0)[:, ~mask] = float("nan")
    (found,) = grouped_moments([x], dims=dim, masks=[mask], backend=backend)
    columns = columns_of(x, dim, mask)
    assert found.count == columns.shape[1]
    if found.count:
        assert_accurate(found, columns)
    else:
        assert not found.squares.any()
        assert not found.mean.any()


def test_an_empty_mask_leaves_earlier_moments(backend: str) -> None:
    x = cases.normal(6, 50, dtype=torch.float32)
    (found,) = grouped_moments([x], backend=backend)
    mean, squares = found.mean.clone(), found.squares.clone()
    grouped_moments([x], masks=[torch.zeros(50, dtype=torch.bool)], into=[found], backend=backend)
    assert found.count == 50
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.squares, squares)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_names_its_layer(dtype: torch.dtype, bad: float, backend: str) -> None:
    x = cases.normal(4, 30, 50, dtype=dtype)
    x[2, 17, 33] = bad
    message = (
        rf"moments: expected finite values, got {bad} of variable 33 at position \(2, 17\), 1 in all \(fc2\)"
    )
    with pytest.raises(ValueError, match=message):
        grouped_moments([cases.normal(8, 8), x], dims=[0, -1], names=["fc1", "fc2"], backend=backend)


def test_an_overflow_names_its_layer(backend: str) -> None:
    with pytest.raises(ValueError, match=r"expected values whose squares are finite, got an overflow \(fc\)"):
        grouped_moments([cases.normal(3, 9) * 1e300], names=["fc"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(2, 3, 4)
    good = grouped_moments([x], dims=1)
    refused = [
        ({"dims": 3}, r"moments: expected a dim of 3, got 3 \(layer 0\)"),
        ({"dims": [0, 1]}, "expected one dim or 1, got 2"),
        ({"dtype": torch.bfloat16}, "expected dtype float32 or float64, got torch.bfloat16"),
        ({"masks": [None, None]}, "expected 1 masks, got 2"),
        ({"masks": [torch.ones(2, 4)], "dims": 1}, r"expected a bool mask of shape \(2, 4\)"),
        ({"masks": [torch.ones(2, 3).bool()], "dims": 1}, r"got torch.bool of \(2, 3\) on cpu \(layer 0\)"),
        ({"into": [], "dims": 1}, "expected 1 moments to add to, got 0"),
        ({"into": good, "dims": 0}, r"expected contiguous float64 moments of shape \(2,\) on cpu"),
        ({"names": ["a", "b"]}, "expected 1 names, got 2"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            grouped_moments([x], **arguments)
    half = Moments(0, torch.zeros(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        grouped_moments([x], dims=1, into=[half])
    with pytest.raises(ValueError, match=r"expected float32, float64, .* got torch.int64 \(layer 0\)"):
        grouped_moments([x.long()])
    with pytest.raises(ValueError, match=r"expected one or more variables, got \(0, 3\)"):
        grouped_moments([torch.zeros(0, 3)])


def test_no_positions_and_no_layers(backend: str) -> None:
    assert grouped_moments([], backend=backend) == []
    (found,) = grouped_moments([torch.zeros(3, 0)], backend=backend)
    assert found.count == 0
    assert not found.squares.any()


def test_inputs_stay_as_they_are(backend: str) -> None:
    x = cases.normal(30, 50, dtype=torch.float32).requires_grad_()
    before = x.detach().clone()
    (found,) = grouped_moments([x], backend=backend)
    assert torch.equal(x, before)
    assert not found.squares.requires_grad


def test_merged_moments_are_those_of_all_positions() -> None:
    x = cases.normal(8, 300) + 5.0
    one, other = grouped_moments([x[:, :70], x[:, 70:]])
    one.merge(other)
    assert_accurate(one, x)
    one.merge(Moments(0, torch.zeros(8).double(), torch.zeros(8, 8).double()))
    assert_accurate(one, x)
    assert torch.allclose(one.covariance(), torch.cov(x), rtol=1e-12)
    assert torch.allclose(one.second(), x @ x.T, rtol=1e-12)


def test_the_number_of_threads_and_neighbours_change_no_bit(threads: Threads) -> None:
    xs = [cases.normal(n, d, dtype=torch.float32) for n, d in ((800, 900), (64, 40000), (8, 8), (30, 5000))]
    with threads(1):
        alone = [grouped_moments([x], backend="cpu")[0] for x in xs]
    with threads(3):
        together = grouped_moments(xs, backend="cpu")
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.squares, other.squares)


@pytest.mark.parametrize("dims", [0, -1])
def test_many_small_layers_are_each_as_it_is_alone(dims: int, backend: str) -> None:
    xs = [cases.normal(size, size + 3) + size for size in (1, 5, 8, 2, 13)]
    found = grouped_moments(xs, dims=dims, backend=backend)
    for x, moments in zip(xs, found, strict=True):
        (alone,) = grouped_moments([x], dims=dims, backend=backend)
        assert moments.count == alone.count
        assert torch.equal(moments.mean, alone.mean)
        assert torch.equal(moments.squares, alone.squares)
    # What is added to one changes none of the others.
    before = [moments.squares.clone() for moments in found]
    grouped_moments([xs[2]], dims=dims, into=[found[2]], backend=backend)
    assert [torch.equal(old, new.squares) for old, new in zip(before, found, strict=True)] == [
        True, True, False, True, True,
    ]  # fmt: skip
