"""grouped_cross_covariance: every backend against more digits; batches, masks and bad arguments."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases
from support.moments_cases import columns_of, exact_moments
from torch import Tensor

from slimfast.kernels import CrossMoments, grouped_cross_covariance

DTYPES = (torch.float32, torch.float64)
# (positions' shape, dim, variables of x, variables of y)
SHAPES = (
    *(((1,), 0, 1, 1), ((7,), 0, 3, 5), ((300,), 0, 70, 33), ((9000,), 1, 5, 40), ((3, 40), -1, 24, 65)),
    *(((5, 7, 7), 1, 17, 9), ((2, 30, 31), 1, 65, 64), ((60,), 0, 700, 130), ((60,), 1, 130, 700)),
)


def pair_of(
    positions: tuple[int, ...], dim: int, k: int, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x with ``k`` variables and y with ``length`` that depend on them, at the same positions."""
    x = cases.normal(k, *positions) + 0.5
    y = cases.normal(length, *positions) - 2.0 + x[:1]
    return tuple(each.movedim(0, dim).contiguous().to(dtype) for each in (x, y))  # type: ignore[return-value]


def assert_accurate(found: CrossMoments, x: Tensor, y: Tensor) -> None:
    """As good as PyTorch's products of the centred columns (K, s) and (L, s) in their dtype."""
    both = exact_moments(torch.cat([x.double(), y.double()]))
    k = len(x)
    assert found.count == both.count
    plain = (x - x.mean(1, keepdim=True)) @ (y - y.mean(1, keepdim=True)).T
    cases.assert_as_accurate_as_torch(found.products.to(x.dtype), plain, both.squares[:k, k:])
    size = 4 * torch.finfo(torch.float64).eps * max(x.abs().max(), y.abs().max())
    assert (found.mean_x - both.mean[:k]).abs().max() <= size
    assert (found.mean_y - both.mean[k:]).abs().max() <= size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("positions", "dim", "k", "length"), SHAPES)
def test_accuracy(
    positions: tuple[int, ...], dim: int, k: int, length: int, dtype: torch.dtype, backend: str
) -> None:
    x, y = pair_of(positions, dim, k, length, dtype)
    (found,) = grouped_cross_covariance([x], [y], dims=dim, backend=backend)
    assert_accurate(found, columns_of(x, dim), columns_of(y, dim))


@pytest.mark.parametrize("mean", [0.0, 3e4])
def test_batches_and_masks(mean: float, backend: str) -> None:
    moments, xs, ys = None, [], []
    for i, samples in enumerate((1, 9, 30)):
        x, y = pair_of((samples, 40), -1, 24, 13, torch.float32)
        x, y = x * (i + 1) + mean, y - mean * (i + 1)
        mask = torch.rand(samples, 40, generator=cases.generator(samples)) < 0.6
        x[~mask] = float("nan")
        y[~mask] = float("inf")
        moments = grouped_cross_covariance([x], [y], dims=-1, masks=[mask], into=moments, backend=backend)
        xs.append(columns_of(x, -1, mask))
        ys.append(columns_of(y, -1, mask))
    assert moments is not None
    assert_accurate(moments[0], torch.cat(xs, 1), torch.cat(ys, 1))


def test_layouts_of_the_two_may_differ(backend: str) -> None:
    x, y = pair_of((6, 30), 0, 11, 20, torch.float32)
    for other in (
        y.permute(0, 2, 1).contiguous().permute(0, 2, 1),
        y.movedim(0, -1).contiguous().movedim(-1, 0),
    ):
        (found,) = grouped_cross_covariance([x], [other], backend=backend)
        assert_accurate(found, columns_of(x, 0), columns_of(y, 0))


def test_dtypes_of_the_two_may_differ(backend: str) -> None:
    x, y = pair_of((300,), 0, 11, 20, torch.float32)
    x = x.bfloat16()
    (found,) = grouped_cross_covariance([x], [y], backend=backend)
    assert_accurate(found, x.float(), y)
    (found,) = grouped_cross_covariance([x], [y.double()], backend=backend)
    assert_accurate(found, x.double(), y.double())


def test_a_value_that_is_not_finite_names_its_pair(backend: str) -> None:
    x, y = pair_of((50,), 0, 3, 4, torch.float32)
    y[2, 7] = float("inf")
    with pytest.raises(ValueError, match=r"got inf of variable 2 at position \(7,\), 1 in all \(conv2\)"):
        grouped_cross_covariance([x], [y], names=["conv2"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_arguments_are_refused() -> None:
    x, y = pair_of((50,), 0, 3, 4, torch.float32)
    good = grouped_cross_covariance([x], [y])
    with pytest.raises(ValueError, match="cross_covariance: expected as many ys as xs, 1, got 2"):
        grouped_cross_covariance([x], [y, y])
    with pytest.raises(ValueError, match=r"expected the same positions, got \(50,\) and \(49,\) \(layer 0\)"):
        grouped_cross_covariance([x], [y[:, 1:]])
    with pytest.raises(ValueError, match=r"expected contiguous float64 moments of shape \(4,\)"):
        grouped_cross_covariance([y], [x], into=good)
    with pytest.raises(ValueError, match="expected 1 moments to add to, got 2"):
        grouped_cross_covariance([x], [y], into=good * 2)
    assert grouped_cross_covariance([], []) == []


def test_merged_moments_are_those_of_all_positions() -> None:
    x, y = pair_of((300,), 0, 3, 4, torch.float64)
    one, other = grouped_cross_covariance([x[:, :70], x[:, 70:]], [y[:, :70], y[:, 70:]])
    one.merge(other)
    assert_accurate(one, x, y)
    one.merge(CrossMoments(0, *(torch.zeros_like(part) for part in (one.mean_x, one.mean_y, one.products))))
    assert_accurate(one, x, y)
    assert torch.allclose(one.second(), x @ y.T, rtol=1e-12)
    assert torch.allclose(one.covariance() * 299, one.products)
