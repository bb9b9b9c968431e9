"""PyTorch with float64 arithmetic: always there, on any device, and what the other backends are tested
against."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimfast.kernels.backends.contract import PreparedOps
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.results import CrossMoments, Moments

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


def moments(
    xs: list[Tensor], masks: list[Tensor | None], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_moments`: xs are (variables, positions ...)."""
    for x, mask, sums in zip(xs, masks, into, strict=True):
        sums.merge(_moments_of(_columns(x, mask)))


def cross_covariance(
    xs: list[Tensor],
    ys: list[Tensor],
    masks: list[Tensor | None],
    into: list[CrossMoments],
    dtypes: list[torch.dtype],
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_cross_covariance`: both are (variables, positions ...)."""
    for x, y, mask, sums in zip(xs, ys, masks, into, strict=True):
        left, right = _columns(x, mask), _columns(y, mask)
        count = left.shape[1]
        mean_x, mean_y = left.sum(1) / max(count, 1), right.sum(1) / max(count, 1)
        products = (left - mean_x[:, None]) @ (right - mean_y[:, None]).T
        sums.merge(CrossMoments(count, mean_x, mean_y, products))


def patch_moments(
    xs: list[Tensor], convolutions: list[Convolution], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_patch_moments`."""
    for x, conv, sums in zip(xs, convolutions, into, strict=True):
        sums.merge(_moments_of(_patches(x, conv)))


def _columns(x: Tensor, mask: Tensor | None) -> Tensor:
    """Copy the positions that count, (variables, positions) in float64."""
    columns = x.double().reshape(len(x), -1)
    return columns if mask is None else columns[:, mask.reshape(-1)]


def _moments_of(columns: Tensor) -> Moments:
    """Compute the moments of (..., variables, positions)."""
    count = columns.shape[-1]
    mean = columns.sum(-1) / max(count, 1)
    centred = columns - mean[..., None]
    squares = centred @ centred.mT
    return Moments(count, mean, (squares + squares.mT) / 2)


def _patches(x: Tensor, conv: Convolution) -> Tensor:
    """Copy the patches of a convolution, (groups, variables of a group, positions) in float64."""
    around = [side for pad in reversed(conv.padding) for side in (pad, pad)]
    padded = torch.nn.functional.pad(x.double(), around)
    outputs = conv.outputs(x.shape[2:])
    seen = []
    for taps in itertools.product(*(range(size) for size in conv.kernel)):
        tap = padded
        for i, (at, dilation, count, stride) in enumerate(
            zip(taps, conv.dilation, outputs, conv.stride, strict=True)
        ):
            tap = tap.narrow(i + 2, at * dilation, (count - 1) * stride + 1)
            tap = tap[(slice(None),) * (i + 2) + (slice(None, None, stride),)]
        seen.append(tap)
    patches = torch.stack(seen, 2).movedim(0, 3)
    return patches.reshape(conv.groups, x.shape[1] // conv.groups * conv.taps, -1)


def cholesky_solve(
    mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]]
) -> list[tuple[Tensor, Tensor]]:
    """See :func:`slimfast.kernels.cholesky_solve.grouped_cholesky_solve`: (solutions, failures) of each."""
    return [_cholesky_solve(a, b, each) for a, b, each in zip(mats, rhs, dampings, strict=True)]


def _cholesky_solve(a: Tensor, b: Tensor, dampings: list[float]) -> tuple[Tensor, Tensor]:
    lower = a.double().tril()
    symmetric = lower + lower.tril(-1).T
    added = torch.tensor(dampings, dtype=torch.float64, device=a.device)[:, None, None]
    damped = symmetric + added * torch.eye(len(a), dtype=torch.float64, device=a.device)
    factors, failures = torch.linalg.cholesky_ex(damped)
    solutions = torch.cholesky_solve(b.double().expand(len(dampings), *b.shape), factors)
    solutions[failures > 0] = float("nan")
    return solutions.to(b.dtype), failures.to("cpu", torch.int64)
