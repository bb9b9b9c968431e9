"""Streaming moments on Triton: on a GPU or under its interpreter, against more digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import kernels_cases as cases
from support.moments_cases import (
    CONVOLUTIONS,
    assert_accurate,
    columns_of,
    exact_moments,
    patches_of,
    plain_squares,
)
from support.triton_process import run_where_triton_is_not_loaded, triton_device

from slimfast.kernels import (
    Convolution,
    Moments,
    grouped_cross_covariance,
    grouped_moments,
    grouped_patch_moments,
)

# ``-m gpu`` is what an NVIDIA GPU is needed for.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
BOTH = (torch.float32, torch.float64)
# (shape, dim of the variables): more than a tile, than a split, one of everything, what linear layers and
# convolutions read.
SHAPES = (
    *(((1, 1), 0), ((5,), 0), ((7, 1), 0), ((70, 131), 0), ((40, 300), 1), ((5, 1500), 0)),
    *(((3, 40, 24), -1), ((3, 12, 9, 9), 1), ((4, 6, 5, 3, 2), 1)),
)


@pytest.fixture(scope="module")
def on() -> Iterator[str]:
    """Where kernels run in this process."""
    yield from triton_device()


def test_kernels_in_a_process_of_their_own_where_triton_is_loaded() -> None:
    run_where_triton_is_not_loaded(__file__)


def on_the_cpu(found: Moments) -> Moments:
    return Moments(found.count, found.mean.cpu(), found.squares.cpu())


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_moments(shape: tuple[int, ...], dim: int, dtype: torch.dtype, on: str) -> None:
    x = (cases.normal(*shape) + 0.5).to(dtype)
    (found,) = grouped_moments([x.to(on)], dims=dim, backend="triton")
    assert_accurate(on_the_cpu(found), columns_of(x, dim))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("shape", "conv"), CONVOLUTIONS[:-1])
def test_patches(shape: tuple[int, ...], conv: Convolution, dtype: torch.dtype, on: str) -> None:
    x = (cases.normal(*shape) + 0.5).to(dtype)
    (found,) = grouped_patch_moments([x.to(on)], [conv], backend="triton")
    assert_accurate(on_the_cpu(found), patches_of(x, conv))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype, on: str) -> None:
    x = cases.normal(2, 9, 7, 6, dtype=dtype)
    plain = Convolution((3, 3), (1, 1), (1, 1), (1, 1))
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::2], x.transpose(2, 3)):
        (found,) = grouped_patch_moments([given.to(on)], [plain], backend="triton")
        assert_accurate(on_the_cpu(found), patches_of(given.float(), plain))
        # Exact products without a mask, and products of what is centred with one.
        mask = torch.rand(len(given), *given.shape[2:], generator=cases.generator(2)) < 0.8
        for kept in (None, mask):
            masks = [None if kept is None else kept.to(on)]
            (found,) = grouped_moments([given.to(on)], dims=1, masks=masks, backend="triton")
            assert_accurate(on_the_cpu(found), columns_of(given.float(), 1, kept))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("k", "length"), [(1, 1), (70, 33), (5, 130), (130, 5)])
def test_cross_covariance(k: int, length: int, dtype: torch.dtype, on: str) -> None:
    x, y = cases.normal(k, 90) + 0.5, cases.normal(length, 90) - 2.0
    x, y = x.to(dtype), y.to(dtype)
    (found,) = grouped_cross_covariance([x.to(on)], [y.T.contiguous().T.to(on)], backend="triton")
    both = torch.cat([x, y])
    exact, plain = exact_moments(both), plain_squares(both)
    cases.assert_as_accurate_as_torch(found.products.cpu().to(dtype), plain[:k, k:], exact.squares[:k, k:])
    assert torch.allclose(found.mean_y.cpu(), exact.mean[k:], rtol=1e-14)


def test_batches_masks_and_layers_together(on: str) -> None:
    moments, seen = None, [[], []]
    for i, samples in enumerate((1, 4, 9)):
        xs = [(cases.normal(samples, 40, width) * (i + 1) + 3e2).float() for width in (24, 70)]
        mask = torch.rand(samples, 40, generator=cases.generator(samples)) < 0.6
        xs[0][~mask] = float("nan")
        masks = [mask.to(on), None]
        moments = grouped_moments(
            [x.to(on) for x in xs], dims=-1, masks=masks, into=moments, backend="triton"
        )
        for had, x, kept in zip(seen, xs, (mask, None), strict=True):
            had.append(columns_of(x, -1, kept))
    assert moments is not None
    for found, had in zip(moments, seen, strict=True):
        assert_accurate(on_the_cpu(found), torch.cat(had, 1))


def test_nothing_counts(on: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(on)
    (found,) = grouped_moments([x], masks=[torch.zeros(9, dtype=torch.bool, device=on)], backend="triton")
    assert found.count == 0
    assert not found.squares.any()
    (found,) = grouped_moments([x[:, :0]], backend="triton")
    assert found.count == 0


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_value_that_is_not_finite_names_its_layer(on: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(on)
    x[2, 5] = float("inf")
    with pytest.raises(ValueError, match=r"got inf of variable 2 at position \(5,\), 1 in all \(fc\)"):
        grouped_moments([x], names=["fc"], backend="triton")


def test_a_layer_does_not_depend_on_the_others(on: str) -> None:
    xs = [cases.normal(n, d, dtype=torch.float32).to(on) for n, d in ((260, 40), (9, 1500), (70, 90))]
    for x, found in zip(xs, grouped_moments(xs, backend="triton"), strict=True):
        (alone,) = grouped_moments([x], backend="triton")
        assert torch.equal(found.squares, alone.squares)
        assert torch.equal(found.mean, alone.mean)
