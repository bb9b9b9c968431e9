"""Ops made ready once and launched many times, as a CUDA graph wants them.

A call of an op writes tables, copies them to the device and looks at its results on the host. A graph can
hold none of that. Here all of it but the kernels is done beforehand:

    call = prepare_covariance(weights)
    values = prepare_eigvalsh(call.results.matrices)
    call.launch()                                    # once before: Triton compiles at its first launch
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.launch()
        values.launch()
    graph.replay()                                   # whenever the weights have changed, in place

Results are written anew by every launch, where they were. Nothing is looked at: what is not finite gives
results that are not. Keep the calls, and the inputs, as long as the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slimfast.errors import ArgumentError, BackendUnavailable
from slimfast.kernels.backends.contract import Backend, Prepared
from slimfast.kernels.checks import (
    check_covariance_options,
    check_gather,
    check_matrix,
    check_one_device,
    check_ranks,
    check_squares,
    covariance_dtype,
    names_of,
)
from slimfast.kernels.dispatch import select_backend
from slimfast.kernels.ops import Side
from slimfast.kernels.results import Covariances, PaddedCholesky, PivotedCholesky


def prepare_covariance(
    xs: Sequence[Tensor],
    *,
    side: Side = "auto",
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Prepared[Covariances]:
    """Make a call of :func:`slimfast.grouped_covariance` ready to be launched, of one or more layers of one
    member; ``traces`` (g,) float64 stay on the device.

    All results are of one dtype: ``dtype``, or what the inputs ask for.
    """
    if not xs:
        raise ArgumentError("covariance: expected one or more layers, got none")
    check_covariance_options(side, dtype)
    for x, name in zip(xs, names_of("covariance", xs, names), strict=True):
        check_matrix("covariance", x, name)
    check_one_device("covariance", xs)
    wanted = {dtype or covariance_dtype([x]) for x in xs}
    if len(wanted) > 1:
        raise ArgumentError(
            f"covariance: expected results of float32 or of float64, got {sorted(map(str, wanted))}"
        )
    (result,) = wanted
    module = select_backend("covariance", xs, backend, in_float64=result == torch.float64)
    rows = [side == "rows" or x.shape[0] <= x.shape[1] for x in xs]
    call: Prepared[tuple[list[Tensor], Tensor]]
    call = _maker(module, "covariance")(list(xs), rows, [result] * len(xs))
    return Prepared(Covariances(*call.results), call.launch)


def prepare_eigvalsh(
    mats: Sequence[Tensor], *, names: Sequence[str] | None = None, backend: str = "auto"
) -> Prepared[list[Tensor]]:
    """Make a call of :func:`slimfast.grouped_eigvalsh` ready to be launched, of one or more matrices."""
    if not mats:
        raise ArgumentError("eigvalsh: expected one or more matrices, got none")
    check_squares("eigvalsh", mats, names_of("eigvalsh", mats, names))
    check_one_device("eigvalsh", mats)
    return _maker(select_backend("eigvalsh", mats, backend), "eigvalsh")(list(mats))


def prepare_pivoted_cholesky(
    mats: Sequence[Tensor],
    ranks: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Prepared[PaddedCholesky]:
    """Make a call of :func:`slimfast.grouped_pivoted_cholesky` ready to be launched, of one or more matrices.

    How many rows are picked is known on the device alone: results are padded to the ranks that are asked for.
    Where what is left unexplained of a matrix is not finite, its picks stop and its residual says so.
    """
    if not mats:
        raise ArgumentError("pivoted_cholesky: expected one or more matrices, got none")
    check_ranks(mats, ranks, names_of("pivoted_cholesky", mats, names))
    check_one_device("pivoted_cholesky", mats)
    make = _maker(select_backend("pivoted_cholesky", mats, backend), "pivoted_cholesky")
    call: Prepared[tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]]
    call = make(list(mats), list(ranks))
    padded, counts = call.results
    return Prepared(PaddedCholesky([PivotedCholesky(*picks) for picks in padded], counts), call.launch)


def prepare_gather(
    tensors: Sequence[Tensor],
    keeps: Sequence[Mapping[int, Tensor]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Prepared[list[Tensor]]:
    """Make a call of :func:`slimfast.grouped_gather` ready to be launched, of one or more tensors."""
    if not tensors:
        raise ArgumentError("gather: expected one or more tensors, got none")
    check_gather(tensors, keeps, names)
    return _maker(select_backend("gather", tensors, backend), "gather")(list(tensors), list(keeps))


def _maker(backend: Backend, op: str) -> Callable[..., Prepared[Any]]:
    if op not in backend.PREPARE:
        name = backend.__name__.rpartition(".")[2]
        raise BackendUnavailable(f"{op}: backend {name!r} has no calls made ready, which are for CUDA graphs")
    return backend.PREPARE[op]
