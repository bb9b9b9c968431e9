"""The grouped (ragged) ops: every layer of a network in one call.

Inputs are checked here, once, before dispatch; backends assume they are right. Inputs are never mutated.
Every op takes ``backend="auto" | "reference" | "cpu" | "cuda" | "triton"`` and, for messages, the ``names``
of its layers. The layers of a call are ragged: axis names that begin with an underscore differ from one to
the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slimfast.kernels.dispatch import select_backend

Side = Literal["auto", "rows"]
_EIGEN = (torch.float32, torch.float64)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Bytes of covariance matrices alive at once in grouped_spectra; one matrix larger than this still runs,
# alone.
WORKSPACE_BYTES = 64 << 20


class Covariances(NamedTuple):
    """Covariances of a group of layers: ``matrices[i]`` is (m_i, m_i); ``traces`` (g,) float64 on the CPU."""

    matrices: list[Tensor]
    traces: Tensor


class PivotedCholesky(NamedTuple):
    """Pivoted Cholesky of one (n, n) matrix, stopped after r <= k picks.

    ``order`` (r,) int64: the picks, best first. ``factor`` (n, r): S[:, order] = factor @ factor[order].T up
    to the residual, rows in the matrix's own order. ``residual`` (r,): the trace left unexplained after each
    pick.
    """

    order: Tensor
    factor: Tensor
    residual: Tensor


class SpectraValues(NamedTuple):
    """Eigenvalues of a group of layers: ``eigenvalues[i]`` (m_i,) ascending, float64 on the CPU; ``traces``
    (g,)."""

    eigenvalues: list[Tensor]
    traces: Tensor


def grouped_covariance(
    xs: Sequence[Float[Tensor, "_n _d"]],
    *,
    side: Side = "auto",
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Covariances:
    """Covariance of the rows of every x_i (n_i, d_i), each row centred on its own mean over the d_i
    positions.

    With Xc = x - mean over d, the matrix is Xc Xc^T / max(d - 1, 1), (n, n). ``side="auto"`` returns the
    smaller of it and Xc^T Xc / max(d - 1, 1), (d, d) (rows where n <= d): both have the same nonzero
    eigenvalues. ``dtype`` is the result's dtype, float32 or float64; by default float64 for float64 inputs,
    float32 for the rest. bfloat16 and float16 inputs are read in place with exact products. Any strides. Both
    triangles are filled.

    Raises ``ValueError`` naming the layer for an input that is not two-dimensional, is empty, or holds a
    value that is not finite (seen in its trace).

    Equivalent to: ``[torch.cov(x) for x in xs]`` with ``side="rows"`` and d >= 2.
    """
    named = _names("covariance", xs, names)
    if side not in ("auto", "rows"):
        raise ValueError(f"covariance: expected side 'auto' or 'rows', got {side!r}")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"covariance: expected dtype float32 or float64, got {dtype}")
    for x, name in zip(xs, named, strict=True):
        _check_matrix("covariance", x, name)
    if not xs:
        return Covariances([], torch.zeros(0, dtype=torch.float64))
    _check_one_device("covariance", xs)
    rows = [side == "rows" or x.shape[0] <= x.shape[1] for x in xs]
    dtypes = [dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32) for x in xs]
    matrices, traces = select_backend("covariance", xs, backend).covariance(list(xs), rows, dtypes)
    traces = traces.to("cpu", torch.float64)
    for name, x, trace in zip(named, xs, traces.tolist(), strict=True):
        if trace != trace or trace == float("inf"):
            raise ValueError(_non_finite("covariance", name, x))
    return Covariances(matrices, traces)


def grouped_eigvalsh(
    mats: Sequence[Float[Tensor, "_m _m"]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Float[Tensor, "_m"]]:
    """Eigenvalues, ascending, of every symmetric matrix (m_i, m_i) float32 or float64, in its dtype and
    device.

    Only the lower triangle is read. Raises ``ValueError`` naming the layer for a matrix that is not square,
    is empty, or is not finite.

    Equivalent to: ``[torch.linalg.eigvalsh(m) for m in mats]``.
    """
    named = _names("eigvalsh", mats, names)
    _check_squares("eigvalsh", mats, named)
    if not mats:
        return []
    _check_one_device("eigvalsh", mats)
    values: list[Tensor] = select_backend("eigvalsh", mats, backend).eigvalsh(list(mats))
    # One look at all of them; which one it was is asked only where there is one.
    dtypes = {v.dtype for v in values}
    for dtype in dtypes:
        chosen = values if len(dtypes) == 1 else [v for v in values if v.dtype == dtype]
        if not bool(torch.cat(chosen).isfinite().all()):
            bad = next(i for i, v in enumerate(values) if not bool(v.isfinite().all()))
            raise ValueError(_non_finite("eigvalsh", named[bad], mats[bad]))
    return values


def grouped_pivoted_cholesky(
    mats: Sequence[Float[Tensor, "_n _n"]],
    ranks: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[PivotedCholesky]:
    """Greedy choice of rows: pivoted Cholesky of every symmetric positive semidefinite (n_i, n_i) matrix.

    Each step picks the row with the largest variance not yet explained by the picks before it (ties: the
    smallest index), at most ``ranks[i]`` of them, and stops early where the remaining variance of every row
    is below n u max(diag) (numerical rank; u the dtype's epsilon). It is column-pivoted QR of X^T where S = X
    X^T, i.e. PCA restricted to real units (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
    section 10.3).

    Raises ``ValueError`` naming the layer for a bad shape, a rank outside 0..n, or a matrix that is not
    finite.
    """
    named = _names("pivoted_cholesky", mats, names)
    if len(ranks) != len(mats):
        raise ValueError(f"pivoted_cholesky: expected {len(mats)} ranks, got {len(ranks)}")
    _check_squares("pivoted_cholesky", mats, named)
    for mat, rank, name in zip(mats, ranks, named, strict=True):
        if not 0 <= rank <= mat.shape[0]:
            raise ValueError(f"pivoted_cholesky: expected a rank in 0..{mat.shape[0]}, got {rank} ({name})")
    if not mats:
        return []
    _check_one_device("pivoted_cholesky", mats)
    finite = torch.stack([m.sum(dtype=torch.float64).isfinite() for m in mats]).tolist()
    for mat, name, ok in zip(mats, named, finite, strict=True):
        if not ok:
            raise ValueError(_non_finite("pivoted_cholesky", name, mat))
    results = select_backend("pivoted_cholesky", mats, backend).pivoted_cholesky(list(mats), list(ranks))
    return [PivotedCholesky(*r) for r in results]


def grouped_gather(
    tensors: Sequence[Tensor],
    keeps: Sequence[Mapping[int, Int[Tensor, "_k"]]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Contiguous copies of the tensors, cut to the kept indices of up to two dims each.

    ``keeps[i]`` maps a dim of ``tensors[i]`` to its kept indices: sorted, distinct int64 on the CPU. Elements
    of 1, 2, 4 or 8 bytes of any dtype are moved as they are. An empty mapping copies the tensor.

    Raises ``ValueError`` naming the tensor for more than two dims, a dim out of range, or indices that are
    not sorted, distinct and in range.

    Equivalent to: ``t.index_select(a, keep_a).index_select(b, keep_b)`` for each tensor.
    """
    named = _names("gather", tensors, names)
    if len(keeps) != len(tensors):
        raise ValueError(f"gather: expected {len(tensors)} keeps, got {len(keeps)}")
    # A group's indices cut many tensors: each is looked through once.
    looked: dict[int, _Kept] = {}
    for tensor, keep, name in zip(tensors, keeps, named, strict=True):
        if len(keep) > 2:
            raise ValueError(f"gather: expected at most two dims, got {sorted(keep)} ({name})")
        for dim, index in keep.items():
            if id(index) not in looked:
                looked[id(index)] = _look_through(index, dim, name)
            _check_keep(tensor, dim, looked[id(index)], name)
    if not tensors:
        return []
    _check_one_device("gather", tensors)
    thin: list[Tensor] = select_backend("gather", tensors, backend).gather(list(tensors), list(keeps))
    return thin


def grouped_spectra(
    xs: Sequence[Float[Tensor, "_n _d"]],
    *,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    backend: str = "auto",
    workspace_bytes: int = WORKSPACE_BYTES,
) -> SpectraValues:
    """Eigenvalues of the covariance of the rows of every x_i (n_i, d_i): m_i = min(n_i, d_i) of them,
    ascending.

    :func:`grouped_covariance` and :func:`grouped_eigvalsh` in turn over batches of layers, biggest first,
    whose matrices together stay within ``workspace_bytes`` (one larger matrix runs alone). Arguments as
    there.

    Equivalent to: ``[torch.linalg.eigvalsh(torch.cov(x))[-min(x.shape):] for x in xs]``.
    """
    named = _names("spectra", xs, names)
    for x, name in zip(xs, named, strict=True):
        _check_matrix("spectra", x, name)
    values: list[Tensor] = [torch.empty(0)] * len(xs)
    traces = torch.zeros(len(xs), dtype=torch.float64)
    for batch in _batches([min(x.shape) for x in xs], workspace_bytes):
        batch_names = [named[i] for i in batch]
        cov = grouped_covariance([xs[i] for i in batch], dtype=dtype, names=batch_names, backend=backend)
        eig = grouped_eigvalsh(cov.matrices, names=batch_names, backend=backend)
        for i, value in zip(batch, eig, strict=True):
            values[i] = value.to("cpu", torch.float64)
        traces[torch.tensor(batch)] = cov.traces
    return SpectraValues(values, traces)


def _batches(sizes: Sequence[int], workspace_bytes: int) -> list[list[int]]:
    """Indices of the matrices of these sizes, biggest first, cut where the float64 workspace would be
    exceeded."""
    batches: list[list[int]] = []
    used = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        need = 8 * sizes[i] * sizes[i]
        if not batches or used + need > workspace_bytes:
            batches.append([])
            used = 0
        batches[-1].append(i)
        used += need
    return batches


class _Numbered(Sequence[str]):
    """The names of layers that have none, made when one is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return f"layer {range(self._count)[index]}"


def _names(op: str, tensors: Sequence[Tensor], names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return _Numbered(len(tensors))
    if len(names) != len(tensors):
        raise ValueError(f"{op}: expected {len(tensors)} names, got {len(names)}")
    return names


def _check_matrix(op: str, x: Tensor, name: str) -> None:
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{op}: expected shape (n, d) with n, d >= 1, got {tuple(x.shape)} ({name})")
    if x.dtype not in FLOATING:
        raise ValueError(f"{op}: expected float32, float64, bfloat16 or float16, got {x.dtype} ({name})")


def _check_squares(op: str, mats: Sequence[Tensor], names: Sequence[str]) -> None:
    # Many small matrices come here: a look at each is all the time that they have.
    for i, mat in enumerate(mats):
        shape = mat.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
            raise ValueError(f"{op}: expected a square matrix, got shape {tuple(shape)} ({names[i]})")
        if mat.dtype not in _EIGEN:
            raise ValueError(f"{op}: expected float32 or float64, got {mat.dtype} ({names[i]})")


def _check_one_device(op: str, tensors: Sequence[Tensor]) -> None:
    if all(t.is_cpu for t in tensors):
        return
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise ValueError(f"{op}: expected tensors on one device, got {', '.join(sorted(map(str, devices)))}")


class _Kept(NamedTuple):
    low: int
    high: int
    rising: bool


def _look_through(index: Tensor, dim: int, name: str) -> _Kept:
    if index.dtype != torch.int64 or index.ndim != 1 or index.device.type != "cpu":
        raise ValueError(
            f"gather: expected one-dimensional int64 indices on the CPU, got {index.dtype} of shape "
            f"{tuple(index.shape)} on {index.device} ({name}, dim {dim})"
        )
    values = index.numpy()
    if len(values) == 0:
        return _Kept(0, -1, True)
    return _Kept(int(values[0]), int(values[-1]), bool((values[1:] > values[:-1]).all()))


def _check_keep(tensor: Tensor, dim: int, kept: _Kept, name: str) -> None:
    if not 0 <= dim < tensor.ndim:
        raise ValueError(f"gather: expected a dim in 0..{tensor.ndim - 1}, got {dim} ({name})")
    length = tensor.shape[dim]
    if kept.low < 0 or kept.high >= length or not kept.rising:
        raise ValueError(
            f"gather: expected sorted, distinct indices in 0..{length - 1}, got {kept.low}..{kept.high} "
            f"({name}, dim {dim})"
        )


def _non_finite(op: str, name: str, x: Tensor) -> str:
    bad = (~x.isfinite()).nonzero()
    if len(bad) == 0:
        return f"{op}: expected values whose squares are finite, got an overflow ({name})"
    at = tuple(bad[0].tolist())
    return f"{op}: expected finite values, got {x[at].item()} at {at}, {len(bad)} in all ({name})"
