"""Covariances on Triton: what the kernels are told, and their launches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.kernels.backends.contract import Prepared
from slimfast.kernels.backends.triton import schedule
from slimfast.kernels.backends.triton.where import interpreted, on_device


def prepare_covariance(
    xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]
) -> Prepared[tuple[list[Tensor], Tensor]]:
    """Make a call of :func:`covariance` ready to be launched; the first launch compiles, so it is no
    capture's.
    """
    device = xs[0].device
    kinds = defaultdict(list)
    matrices = []
    for i, (x, by_rows, dtype) in enumerate(zip(xs, rows, dtypes, strict=True)):
        m = x.shape[0] if by_rows else x.shape[1]
        matrices.append(torch.empty(m, m, dtype=dtype, device=device))
        tiles = schedule.choose_tiles(m, _computed_in(x.dtype, dtype), exact=_is_exact(x.dtype, dtype))
        kinds[x.dtype, dtype, tiles].append(i)
    # Trace and sum of squared means of every layer.
    summary = torch.empty(len(xs), 2, dtype=torch.float64, device=device)
    with on_device(device):
        launches = [
            _prepare_alike(xs, rows, matrices, members, summary, tiles)
            for (_, _, tiles), members in kinds.items()
        ]

    def launch() -> None:
        with on_device(device):
            for one in launches:
                one()

    return Prepared((matrices, summary[:, 0]), launch)


def _is_exact(source: torch.dtype, dtype: torch.dtype) -> bool:
    """Say whether products are exact: those of 16-bit numbers are in float32, as long as nothing is
    subtracted first.
    """
    return source in (torch.bfloat16, torch.float16) and dtype == torch.float32


def _computed_in(source: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (source, dtype) else torch.float32


class _Buffers(NamedTuple):
    """What the kernels of layers of one dtype read and write on the device, ``summary`` for all layers of the
    call.
    """

    layers: Tensor
    vectors: Tensor
    summary: Tensor
    sums: Tensor
    edge_parts: Tensor
    partial: Tensor


def _prepare_alike(
    xs: list[Tensor],
    rows: list[bool],
    matrices: list[Tensor],
    members: list[int],
    summary: Tensor,
    tiles: schedule.Tiles,
) -> Callable[[], None]:
    """Prepare what fills the matrices of these members, which are of one dtype, from layers of one dtype, in
    these tiles.
    """
    xs, rows = [xs[i] for i in members], [rows[i] for i in members]
    matrices = [matrices[i] for i in members]
    source, dtype, device = xs[0].dtype, matrices[0].dtype, xs[0].device
    sizes = [x.shape if by_rows else x.shape[::-1] for x, by_rows in zip(xs, rows, strict=True)]
    layers = schedule.layer_table(xs, rows, matrices, members, centred_later=_is_exact(source, dtype))
    work = schedule.gram_work(sizes, tiles)
    moments, summaries = schedule.moment_items(layers), schedule.summary_items(layers)
    tables = schedule.to_device([layers.table, moments, summaries, work.items, work.cut], device)
    layer_table, moment_items, summary_items, gram_items, cut_tiles = tables
    compute = _computed_in(source, dtype)
    buffers = _Buffers(
        layer_table,
        torch.empty(layers.vectors, dtype=torch.float64, device=device),
        summary,
        torch.empty(layers.blocks, 2, dtype=torch.float64, device=device),
        torch.empty(layers.edge_parts, dtype=torch.float64, device=device),
        torch.empty(work.slots, tiles.block, tiles.block, dtype=compute, device=device),
    )

    def launch() -> None:
        _launch_moments(source, buffers, moment_items, summary_items)
        _launch_products(source, dtype, buffers, gram_items, cut_tiles, tiles)

    return launch


def _launch_moments(source: torch.dtype, buffers: _Buffers, moments: Tensor, summaries: Tensor) -> None:
    """Find the means of the layers and their traces."""
    from slimfast.kernels.backends.triton import moment_kernels

    layers, vectors, summary, sums, edge_parts, _ = buffers
    moment_kernels.moments_kernel[(len(moments),)](
        *(layers, moments, vectors, sums, edge_parts),
        ELEMENT=moment_kernels.ELEMENT[source],
        BLOCK=moment_kernels.MOMENT_POSITIONS,
        enable_fp_fusion=True,
    )
    moment_kernels.summary_kernel[(len(summaries),)](
        *(layers, summaries, sums, edge_parts, vectors, summary),
        BLOCKS=moment_kernels.SUMMARY_BLOCKS,
        COLUMNS=schedule.SUMMARY_COLUMNS,
        enable_fp_fusion=True,
    )


def _launch_products(
    source: torch.dtype,
    dtype: torch.dtype,
    buffers: _Buffers,
    items: Tensor,
    cut_tiles: Tensor,
    tiles: schedule.Tiles,
) -> None:
    """Find the products of the centred layers, and add up those that are cut along k."""
    from slimfast.kernels.backends.triton import covariance_kernels, moment_kernels

    layers, vectors, summary, _, _, partial = buffers
    exact, element = _is_exact(source, dtype), moment_kernels.ELEMENT
    for centre in (False, True) if exact else (True,):
        covariance_kernels.gram_kernel[(min(len(items), 2 * _processors(layers.device)),)](
            *(layers, items, len(items), vectors, summary, partial),
            ELEMENT=element[source],
            COMPUTE=element[_computed_in(source, dtype)],
            OUT=element[dtype],
            BLOCK=tiles.block,
            DEPTH=tiles.depth,
            PRODUCTS=covariance_kernels.PRODUCTS,
            EXACT=exact,
            CENTRE=centre,
            # The interpreter's bfloat16 product is wrong; float32 holds the same numbers.
            WIDEN=exact and interpreted(),
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
    if len(cut_tiles):
        covariance_kernels.sum_kernel[(len(cut_tiles), tiles.block // covariance_kernels.SUM_ROWS)](
            *(layers, cut_tiles, vectors, summary, partial),
            OUT=element[dtype],
            BLOCK=tiles.block,
            ROWS=covariance_kernels.SUM_ROWS,
            EXACT=exact,
            enable_fp_fusion=True,
        )


def _processors(device: torch.device) -> int:
    """Count the multiprocessors of the GPU; under the interpreter a few, so that programs have several tiles
    each.
    """
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
