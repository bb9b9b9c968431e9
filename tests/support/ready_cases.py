"""Inputs of calls made ready, and their results beside those of plain calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slimfast.kernels import (
    PaddedCholesky,
    Prepared,
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    prepare_covariance,
    prepare_eigvalsh,
    prepare_gather,
    prepare_pivoted_cholesky,
)
from support import kernels_cases as cases

KEEPS = [{0: torch.tensor([0, 2, 5]), 1: torch.tensor([1, 3])}, {0: torch.tensor([1, 39])}, {}]


def layers(device: str) -> list[Tensor]:
    """Inputs of a covariance: one split along d, one on the columns side, one of two tiles."""
    shapes = ((40, 1100), (70, 33), (9, 17), (130, 150))
    return [cases.normal(*shape, dtype=torch.float32).to(device) for shape in shapes]


def tensors(device: str) -> list[Tensor]:
    """Inputs of a gather of ``KEEPS``."""
    return [cases.normal(*shape).to(device) for shape in ((6, 4, 3, 3), (40, 7), (5,))]


def ready(op: str, device: str) -> tuple[list[Tensor], Prepared[Any], Any]:
    """Inputs, the call made ready, and the same op to compare with."""
    if op == "covariance":
        xs = layers(device)
        return (
            xs,
            prepare_covariance(xs, backend="cuda"),
            lambda: grouped_covariance(xs, backend="cuda").matrices,
        )
    if op == "eigvalsh":
        mats = [cases.layer_like(m).to(device) for m in (3, 31, 40, 70)]
        return mats, prepare_eigvalsh(mats, backend="cuda"), lambda: grouped_eigvalsh(mats, backend="cuda")
    if op == "pivoted_cholesky":
        mats, ranks = semidefinite(device)
        return (
            mats,
            prepare_pivoted_cholesky(mats, ranks, backend="cuda"),
            lambda: [
                part for picks in grouped_pivoted_cholesky(mats, ranks, backend="cuda") for part in picks
            ],
        )
    xs = tensors(device)
    return xs, prepare_gather(xs, KEEPS, backend="cuda"), lambda: grouped_gather(xs, KEEPS, backend="cuda")


def semidefinite(device: str) -> tuple[list[Tensor], list[int]]:
    """Of full rank, and of ranks 3, 1 and 0, of which more picks are asked for; one that a cluster takes."""
    mats = [cases.layer_like(40).float(), cases.wishart(9), torch.ones(12, 12), torch.zeros(5, 5)]
    x = cases.normal(520, 3)
    return [mat.to(device) for mat in (*mats, x @ x.T)], [7, 9, 4, 2, 5]


def results(call: Prepared[Any]) -> list[Tensor]:
    """The tensors that a launch writes, without the padding of picks."""
    found = call.results
    if isinstance(found, PaddedCholesky):
        return [
            part
            for (order, factor, residual), count in zip(found.picks, found.counts.tolist(), strict=True)
            for part in (order[:count], factor[:, :count], residual[:count])
        ]
    return list(getattr(found, "matrices", found))
