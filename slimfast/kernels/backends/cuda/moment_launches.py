"""Streaming moments, cross-covariances and patch moments through csrc/cuda/moments.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimfast.kernels.backends.cuda.device import Device, device_of
from slimfast.kernels.backends.cuda.tables import LARGE_TILE_FROM, Launch, Tables
from slimfast.kernels.backends.moment_layers import (
    MomentLayer,
    cross_layers,
    moment_layers,
    patch_layers,
)
from slimfast.kernels.backends.moment_tables import MomentTable, count_positions, moment_tables
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.results import CrossMoments, Moments


def moments(
    xs: list[Tensor], masks: list[Tensor | None], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_moments`: xs are (variables, positions ...)."""
    _add(moment_layers(xs, masks, into, dtypes))


def cross_covariance(
    xs: list[Tensor],
    ys: list[Tensor],
    masks: list[Tensor | None],
    into: list[CrossMoments],
    dtypes: list[torch.dtype],
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_cross_covariance`."""
    _add(cross_layers(xs, ys, masks, into, dtypes))


def patch_moments(
    xs: list[Tensor],
    convolutions: list[Convolution],
    into: list[Moments],
    dtypes: list[torch.dtype],
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_patch_moments`: patches are formed in shared memory."""
    _add(patch_layers(xs, convolutions, into, dtypes))


def _add(layers: list[MomentLayer]) -> None:
    with device_of(layers[0].x.data) as device:
        for table in moment_tables(layers, [_tile_of(device, layer) for layer in layers]):
            _launch(device, table)
    count_positions(layers)


def _tile_of(device: Device, layer: MomentLayer) -> int:
    """Choose the tile: in float64 the large one has more sums than registers hold."""
    module = device.module
    shared_bytes, _ = module.device_limits(device.index)
    widest = layer.group if layer.y is None else max(layer.x.variables, layer.y.variables)
    large: int = module.COVARIANCE_LARGE_TILE
    if layer.in_double or widest < LARGE_TILE_FROM or module.moment_shared_bytes(large) > shared_bytes:
        small: int = module.COVARIANCE_SMALL_TILE
        return small
    return large


def _launch(device: Device, table: MomentTable) -> None:
    """Sum the means, then the products about them, and join both with what was there."""
    module, on = device.module, device.on
    tables = Tables()
    sums = _over_variables(tables, table, module.MEAN_VARIABLES, table.splits)
    means = _over_variables(tables, table, module.JOIN_VARIABLES, [1] * len(table.layers))
    kinds = [(layer.in_double, tile) for layer, tile in zip(table.layers, table.tile, strict=True)]
    products, finish = [], []
    for kind in dict.fromkeys(kinds):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        rows, tile = table.rows[mine], kind[1]
        tiles, splits = [table.tiles[i] for i in mine], [table.splits[i] for i in mine]
        blocks = [count * parts for count, parts in zip(tiles, splits, strict=True)]
        products.append((Launch(tables.add(rows, blocks), len(mine), sum(blocks)), kind))
        blocks = [count * tile // module.MOMENT_FINISH_ROWS for count in tiles]
        finish.append((Launch(tables.add(rows, blocks), len(mine), sum(blocks)), tile))
    on_device = device.table(tables.numbers)
    at = on_device.data_ptr()
    split_sums, partial = device.empty(table.sums), device.empty(table.partial)
    centre, apart = device.empty(2, table.means)
    module.moment_sums(*on, *sums.at(at), split_sums.data_ptr())
    module.moment_means(*on, *means.at(at), split_sums.data_ptr(), centre.data_ptr(), apart.data_ptr())
    for launch, (in_double, tile) in products:
        module.moment_tiles(*on, *launch.at(at), in_double, tile, centre.data_ptr(), partial.data_ptr())
    for launch, tile in finish:
        module.moment_finish(*on, *launch.at(at), tile, apart.data_ptr(), partial.data_ptr())


def _over_variables(tables: Tables, table: MomentTable, size: int, parts: Sequence[int]) -> Launch:
    """Add a launch over blocks of ``size`` variables of x, then of y, in so many parts each."""
    blocks = []
    for layer, count in zip(table.layers, parts, strict=True):
        operands = (layer.x,) if layer.y is None else (layer.x, layer.y)
        blocks.append(count * sum(-(-operand.variables // size) for operand in operands))
    return Launch(tables.add(table.rows, blocks), len(blocks), sum(blocks))
