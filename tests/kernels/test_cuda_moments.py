"""The CUDA kernels of streaming moments, emulated and on a GPU; test_grouped_moments.py has more cases."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import kernels_cases as cases
from support.cuda_fixtures import assert_independent_of_the_order, barriers_not_needed
from support.moments_cases import assert_accurate, columns_of, exact_moments, patches_of, plain_squares
from torch import Tensor

from slimfast.kernels import (
    Convolution,
    Moments,
    grouped_cross_covariance,
    grouped_moments,
    grouped_patch_moments,
)
from slimfast.kernels.backends import moment_tables

# Groups that share a tile and groups of several tiles; dims of every kind.
DEPTHWISE = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 20)
GROUPED = Convolution((3, 3), (2, 1), (1, 2), (1, 2), 2)
WIDE = Convolution((3, 3), (1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dim"), [((1, 1), 0), ((33, 70), 1), ((3, 20, 24), -1), ((4, 10, 6, 7), 1)]
)
def test_batches_and_masks(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str) -> None:
    moments, seen, allowed = None, [], 0.0
    mean = 3e3 if dtype == torch.float32 else 3.0
    for i in range(3):
        x = (cases.normal(*shape, i + 1)[..., i] * (i + 1) + mean).to(dtype)
        positions = x.movedim(dim, 0).shape[1:]
        mask = torch.rand(positions, generator=cases.generator(*shape)) < 0.7 if i == 1 else None
        if i == 1:
            mask.view(-1)[0] = True
        seen.append(columns_of(x, dim, mask))
        on = None if mask is None else mask.to(device)
        moments = grouped_moments([x.to(device)], dims=dim, masks=[on], into=moments, backend="cuda")
        # Each batch is held to PyTorch's own error on it, and what they may be off adds up.
        own = exact_moments(seen[-1]).squares
        unit = torch.finfo(dtype).eps * own.abs().max().item()
        allowed += 2 * max((plain_squares(seen[-1]).double() - own).abs().max().item(), unit)
    assert moments is not None
    exact = exact_moments(torch.cat(seen, 1))
    assert moments[0].count == exact.count
    # Joining loses roundings of the mean.
    allowed += torch.finfo(torch.float64).eps * mean * exact.squares.abs().max().item()
    assert (moments[0].squares.cpu() - exact.squares).abs().max() <= allowed
    assert torch.allclose(moments[0].mean.cpu(), exact.mean, rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_large_tiles_and_small_ones(device: str, dtype: torch.dtype) -> None:
    # From 256 variables on the tiles are large; two of them, one of the diagonal, none of them full.
    products = torch.float64 if dtype == torch.float64 else torch.float32
    xs = [(cases.normal(n, d) + 0.5).to(dtype) for n, d in ((260, 300), (70, 1100))]
    for x, found in zip(xs, grouped_moments([x.to(device) for x in xs], backend="cuda"), strict=True):
        assert_accurate(on_the_cpu(found), x.to(products))
    (wide,) = grouped_cross_covariance([xs[0].to(device)], [xs[0][:130].to(device)], backend="cuda")
    exact, plain = exact_moments(xs[0]).squares[:, :130], plain_squares(xs[0].to(products))[:, :130]
    cases.assert_as_accurate_as_torch(wide.products.cpu().to(products), plain, exact)


@pytest.mark.parametrize("conv", [DEPTHWISE, GROUPED, WIDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_of_groups(device: str, conv: Convolution, dtype: torch.dtype) -> None:
    x = (cases.normal(2, 20, 9, 11) + 0.5).to(dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        (found,) = grouped_patch_moments([given.to(device)], [conv], backend="cuda")
        assert_accurate(on_the_cpu(found), patches_of(given.float(), conv))


def on_the_cpu(found: Moments) -> Moments:
    return Moments(found.count, found.mean.cpu(), found.squares.cpu())


def test_positions_that_four_dims_do_not_describe_are_copied(device: str) -> None:
    x = cases.normal(6, 3, 4, 2, 3, 2, dtype=torch.float32).permute(0, 5, 3, 1, 4, 2)[:, :, ::2, :, 1:]
    mask = torch.rand(x.shape[1:], generator=cases.generator(3)) < 0.5
    (found,) = grouped_moments([x.to(device)], masks=[mask.to(device)], backend="cuda")
    assert_accurate(on_the_cpu(found), columns_of(x, 0, mask))


def test_a_layer_does_not_depend_on_the_others(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xs = [cases.normal(n, d, dtype=torch.float32).to(device) for n, d in ((260, 40), (9, 4000), (70, 1100))]
    together = grouped_moments(xs, backend="cuda")
    alone = [grouped_moments([x], backend="cuda")[0] for x in xs]
    # A workspace that holds one layer at a time.
    monkeypatch.setattr(moment_tables, "_WORKSPACE_ELEMENTS", 1)
    parted = grouped_moments(xs, backend="cuda")
    for one, other, third in zip(together, alone, parted, strict=True):
        assert torch.equal(one.squares, other.squares)
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.squares, third.squares)


def test_nothing_counts(device: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(device)
    none = torch.zeros(9, dtype=torch.bool, device=device)
    (found,) = grouped_moments([x], masks=[none], backend="cuda")
    assert found.count == 0
    assert not found.squares.any()


def test_a_value_that_is_not_finite_names_its_layer(device: str) -> None:
    x = cases.normal(4, 9, dtype=torch.float32).to(device)
    x[2, 5] = float("inf")
    with pytest.raises(ValueError, match=r"got inf of variable 2 at position \(5,\), 1 in all \(fc\)"):
        grouped_moments([x], names=["fc"], backend="cuda")


def test_where_a_block_has_little_shared_memory(emulator: ModuleType) -> None:
    # No room for a large tile: one that asked for it would not be launched.
    emulator.set_device(99 << 10, False)
    x = cases.normal(260, 300, dtype=torch.float32) + 0.5
    (found,) = grouped_moments([x], backend="cuda")
    assert_accurate(found, x)


def run_moments(_: ModuleType) -> list[Tensor]:
    # Either way in memory, a mask, two chunks and two splits, large tiles, float64, a second batch.
    x, y = cases.normal(40, 1100, dtype=torch.float32), cases.normal(1100, 70, dtype=torch.float32).T
    mask = torch.rand(1100, generator=cases.generator(1)) < 0.7
    wide, double = cases.normal(260, 150, dtype=torch.float32), cases.normal(70, 150)
    found = grouped_moments([x, wide, double], masks=[mask, None, None], backend="cuda")
    found = grouped_moments([x + 3, wide - 1, double], into=found, backend="cuda")
    (cross,) = grouped_cross_covariance([x], [y], masks=[mask], backend="cuda")
    patches = grouped_patch_moments(
        [cases.normal(2, 20, 9, 11).float()] * 2, [DEPTHWISE, WIDE], backend="cuda"
    )
    sums = [part for m in (*found, *patches) for part in (m.mean, m.squares)]
    return [*sums, cross.mean_x, cross.mean_y, cross.products]


def test_results_do_not_depend_on_the_order_of_threads(emulator: ModuleType) -> None:
    assert_independent_of_the_order(emulator, run_moments)


def test_every_barrier_is_needed_and_a_missing_one_is_seen(emulator: ModuleType) -> None:
    assert barriers_not_needed(emulator, run_moments) == []
