"""PyTorch with float64 arithmetic: always there, on any device, and what the other backends are tested
against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimfast.kernels.backends.contract import PreparedOps

# PyTorch's own ops wait for the host.
PREPARE: PreparedOps = {}


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """List devices without float64: nothing else speaks against the reference."""
    kinds = {t.device.type for t in inputs}
    return [f"{kind} has no float64" for kind in sorted(kinds & {"mps"})]


def covariance(xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]) -> tuple[list[Tensor], Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_covariance`; ``rows[i]`` chooses the side, ``dtypes[i]`` the
    result."""
    return joint_covariance([[x] for x in xs], rows, dtypes)


def joint_covariance(
    layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype]
) -> tuple[list[Tensor], Tensor]:
    """Compute the same for layers of several members."""
    matrices, traces = [], []
    for members, by_rows, dtype in zip(layers, rows, dtypes, strict=True):
        centred = torch.cat([x.double() - x.double().mean(1, keepdim=True) for x in members], 1)
        left = centred if by_rows else centred.T
        denominator = max(centred.shape[1] - 1, 1)
        matrices.append((left @ left.T / denominator).to(dtype))
        traces.append(centred.square().sum() / denominator)
    return matrices, torch.stack(traces)


def eigvalsh(mats: list[Tensor]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_eigvalsh`; a matrix that is not finite gives NaN
    eigenvalues."""
    values = []
    for mat in mats:
        lower = mat.double().tril()
        if not bool(lower.isfinite().all()):
            values.append(mat.new_full((mat.shape[0],), float("nan")))
        else:
            values.append(torch.linalg.eigvalsh(lower, UPLO="L").to(mat.dtype))
    return values


def eigvalsh_stacked(mats: Tensor) -> Tensor:
    """Compute the same for a stack (b, m, m); (b, m)."""
    return torch.stack(eigvalsh(list(mats)))


def pivoted_cholesky(mats: list[Tensor], ranks: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See :func:`slimfast.kernels.ops.grouped_pivoted_cholesky`: (order, factor, residual) of each matrix."""
    return [_pivoted_cholesky(mat, rank) for mat, rank in zip(mats, ranks, strict=True)]


def _pivoted_cholesky(mat: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    n = mat.shape[0]
    s = mat.double()
    left = s.diagonal().clone()
    floor = n * torch.finfo(mat.dtype).eps * float(left.max())
    factor = s.new_zeros(n, rank)
    order: list[int] = []
    residual = []
    for step in range(rank):
        pick = int(left.argmax())
        if float(left[pick]) <= floor:
            break
        column = (s[:, pick] - factor[:, :step] @ factor[pick, :step]) / left[pick].sqrt()
        # What is picked is explained: exactly zero, so that it cannot be picked again.
        column[order] = 0.0
        factor[:, step] = column
        left = (left - column.square()).clamp_min(0.0)
        order.append(pick)
        left[order] = 0.0
        residual.append(left.sum())
    picked = len(order)
    trail = torch.stack(residual) if residual else s.new_zeros(0)
    return (
        torch.tensor(order, dtype=torch.int64, device=mat.device),
        factor[:, :picked].to(mat.dtype),
        trail.to(mat.dtype),
    )


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    thin = []
    for tensor, keep in zip(tensors, keeps, strict=True):
        cut = tensor.detach()
        for dim, index in keep.items():
            cut = cut.index_select(dim, index.to(cut.device))
        thin.append(cut.clone(memory_format=torch.contiguous_format) if not keep else cut.contiguous())
    return thin
