"""The grouped (ragged) ops: every layer of a network in one call.

Inputs are checked here, once, before dispatch, and never mutated. Every op takes ``backend="auto" |
"reference" | "cpu" | "cuda" | "triton"`` and, for messages, the ``names`` of its layers. Axis names that
begin with an underscore differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slimfast.errors import ArgumentError, NonFinite
from slimfast.kernels.checks import (
    check_covariance_options,
    check_gather,
    check_one_device,
    check_ranks,
    check_squares,
    covariance_dtype,
    members_of,
    names_of,
    non_finite,
)
from slimfast.kernels.dispatch import select_backend
from slimfast.kernels.memory import batches_within, call_bytes
from slimfast.kernels.results import Covariances, PivotedCholesky, SpectraValues

Side = Literal["auto", "rows"]
# Bytes of covariance matrices alive at once in grouped_spectra on a CPU; a larger one still runs, alone.
WORKSPACE_BYTES = 64 << 20


def grouped_covariance(
    xs: Sequence[Float[Tensor, "_n _d"] | Sequence[Float[Tensor, "_n _d"]]],
    *,
    side: Side = "auto",
    dtype: torch.dtype | None = None,
    names: Sequence[str | Sequence[str]] | None = None,
    backend: str = "auto",
) -> Covariances:
    """Compute the covariance of the rows of every x_i (n_i, d_i), each row centred on its own mean.

    With Xc = x - mean over d, the matrix is Xc Xc^T / max(d - 1, 1), (n, n). bfloat16 and float16 inputs are
    read in place with exact products. Any strides. Both triangles are filled. Equivalent to ``[torch.cov(x)
    for x in xs]`` with ``side="rows"`` and d >= 2.

    Args:
        xs: The layers. One may be a sequence of members (n, d_j) with the same rows: they count as one x side
            by side, each centred on its own and d the sum of the d_j, and always by rows.
        side: ``"auto"`` returns the smaller of the matrix and Xc^T Xc / max(d - 1, 1), (d, d) (rows where n
            <= d): both have the same nonzero eigenvalues. ``"rows"`` returns the matrix.
        dtype: The result's, float32 or float64; by default float64 for float64 inputs, float32 for the rest.
        names: Of the layers, or of the members of each, for messages.
        backend: The kernels to use.

    Returns:
        The matrices and their traces.

    Raises:
        ValueError: Naming the layer, for an input that is not two-dimensional, is empty, or holds a value
            that is not finite (seen in its trace).

    Example:
        matrices, traces = slimfast.grouped_covariance([torch.randn(8, 27), torch.randn(16, 72)])
    """
    check_covariance_options(side, dtype)
    layers, named = members_of("covariance", xs, names)
    if not xs:
        return Covariances([], torch.zeros(0, dtype=torch.float64, device="cpu"))
    every = [member for members in layers for member in members]
    check_one_device("covariance", every)
    rows = [side == "rows" or len(x) > 1 or x[0].shape[0] <= x[0].shape[1] for x in layers]
    dtypes = [dtype or covariance_dtype(members) for members in layers]
    # A layer's backend follows from its own dtype, so that its bits do not depend on its neighbours.
    modules = {
        wanted: select_backend("covariance", every, backend, in_float64=wanted == torch.float64)
        for wanted in set(dtypes)
    }
    matrices: list[Tensor] = [torch.empty(0, device="cpu")] * len(layers)
    traces = torch.zeros(len(layers), dtype=torch.float64, device="cpu")
    for module in set(modules.values()):
        mine = [i for i, wanted in enumerate(dtypes) if modules[wanted] is module]
        sides, results = [rows[i] for i in mine], [dtypes[i] for i in mine]
        if all(len(layers[i]) == 1 for i in mine):
            found, found_traces = module.covariance([layers[i][0] for i in mine], sides, results)
        else:
            found, found_traces = module.joint_covariance([layers[i] for i in mine], sides, results)
        traces[mine] = found_traces.to("cpu", torch.float64)
        for i, matrix in zip(mine, found, strict=True):
            matrices[i] = matrix
    for told, members, trace in zip(named, layers, traces.tolist(), strict=True):
        if trace != trace or trace == float("inf"):
            bad = next((i for i, x in enumerate(members) if not bool(x.isfinite().all())), 0)
            raise NonFinite(non_finite("covariance", told[bad], members[bad]))
    return Covariances(matrices, traces)


@overload
def grouped_eigvalsh(
    mats: Float[Tensor, "b m m"], *, names: Sequence[str] | None = None, backend: str = "auto"
) -> Float[Tensor, "b m"]: ...


@overload
def grouped_eigvalsh(
    mats: Sequence[Float[Tensor, "_m _m"]], *, names: Sequence[str] | None = None, backend: str = "auto"
) -> list[Float[Tensor, "_m"]]: ...


def grouped_eigvalsh(
    mats: Float[Tensor, "b m m"] | Sequence[Float[Tensor, "_m _m"]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b m"] | list[Float[Tensor, "_m"]]:
    """Compute the eigenvalues, ascending, of every symmetric matrix (m_i, m_i), in its dtype and device.

    Only the lower triangle is read. Equivalent to ``[torch.linalg.eigvalsh(m) for m in mats]``.

    Args:
        mats: float32 or float64. A stack (b, m, m) spares thousands of small matrices the look at each.
        names: Of the layers, for messages.
        backend: The kernels to use.

    Returns:
        A vector for each matrix; (b, m) for a stack.

    Raises:
        ValueError: Naming the layer, for a matrix that is not square, is empty, or is not finite.

    Example:
        (eigenvalues,) = slimfast.grouped_eigvalsh([torch.cov(torch.randn(8, 27))])
    """
    named = names_of("eigvalsh", mats, names)
    if isinstance(mats, Tensor):
        return _eigvalsh_stacked(mats, named, backend)
    check_squares("eigvalsh", mats, named)
    if not mats:
        return []
    check_one_device("eigvalsh", mats)
    values = select_backend("eigvalsh", mats, backend).eigvalsh(list(mats))
    # One look at all of them; which one it was is asked only where there is one.
    dtypes = {v.dtype for v in values}
    for dtype in dtypes:
        chosen = values if len(dtypes) == 1 else [v for v in values if v.dtype == dtype]
        if not bool(torch.cat(chosen).isfinite().all()):
            bad = next(i for i, v in enumerate(values) if not bool(v.isfinite().all()))
            raise NonFinite(non_finite("eigvalsh", named[bad], mats[bad]))
    return values


def _eigvalsh_stacked(mats: Tensor, named: Sequence[str], backend: str) -> Tensor:
    if mats.ndim != 3 or mats.shape[1] != mats.shape[2] or mats.shape[1] == 0:
        raise ArgumentError(f"eigvalsh: expected a stack of square matrices, got shape {tuple(mats.shape)}")
    check_squares("eigvalsh", [mats[0]] if len(mats) else [], named)
    if len(mats) == 0:
        return mats.new_empty(0, mats.shape[1])
    values = select_backend("eigvalsh", [mats], backend).eigvalsh_stacked(mats)
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).any(1).nonzero()[0])
        raise NonFinite(non_finite("eigvalsh", named[bad], mats[bad]))
    return values


def grouped_pivoted_cholesky(
    mats: Sequence[Float[Tensor, "_n _n"]],
    ranks: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[PivotedCholesky]:
    """Choose rows greedily: pivoted Cholesky of every symmetric positive semidefinite (n_i, n_i) matrix.

    Each step picks the row with the largest variance not yet explained by the picks before it (ties: the
    smallest index), at most ``ranks[i]`` of them, and stops early where the remaining variance of every row
    is below n u max(diag) (numerical rank; u the dtype's epsilon). It is column-pivoted QR of X^T where S = X
    X^T, i.e. PCA restricted to real units (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
    section 10.3).

    Args:
        mats: The matrices.
        ranks: How many rows to pick of each, at most.
        names: Of the layers, for messages.
        backend: The kernels to use.

    Returns:
        The picks, the factor and what is left unexplained of each matrix.

    Raises:
        ValueError: Naming the layer, for a bad shape, a rank outside 0..n, or a matrix that is not finite.

    Example:
        (picked,) = slimfast.grouped_pivoted_cholesky([torch.cov(torch.randn(8, 27))], [4])
        picked.order   # the four rows, best first
    """
    named = names_of("pivoted_cholesky", mats, names)
    check_ranks(mats, ranks, named)
    if not mats:
        return []
    check_one_device("pivoted_cholesky", mats)
    finite = torch.stack([m.sum(dtype=torch.float64) for m in mats]).isfinite().tolist()
    for mat, name, ok in zip(mats, named, finite, strict=True):
        if not ok:
            raise NonFinite(non_finite("pivoted_cholesky", name, mat))
    results = select_backend("pivoted_cholesky", mats, backend).pivoted_cholesky(list(mats), list(ranks))
    return [PivotedCholesky(*r) for r in results]


def grouped_gather(
    tensors: Sequence[Tensor],
    keeps: Sequence[Mapping[int, Int[Tensor, "_k"]]],
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Copy the tensors, cut to the kept indices of up to two dims each.

    Elements of 1, 2, 4 or 8 bytes of any dtype are moved as they are. Equivalent to
    ``t.index_select(a, keep_a).index_select(b, keep_b)`` for each tensor.

    Args:
        tensors: What to cut.
        keeps: ``keeps[i]`` maps a dim of ``tensors[i]`` to its kept indices: sorted, distinct int64 on the
            CPU. An empty mapping copies the tensor.
        names: Of the tensors, for messages.
        backend: The kernels to use.

    Returns:
        Contiguous copies.

    Raises:
        ValueError: Naming the tensor, for more than two dims, a dim out of range, or indices that are not
            sorted, distinct and in range.

    Example:
        (thin,) = slimfast.grouped_gather([torch.randn(8, 4, 3, 3)], [{0: torch.tensor([0, 2, 5])}])
    """
    check_gather(tensors, keeps, names)
    if not tensors:
        return []
    return select_backend("gather", tensors, backend).gather(list(tensors), list(keeps))


def grouped_spectra(
    xs: Sequence[Float[Tensor, "_n _d"] | Sequence[Float[Tensor, "_n _d"]]],
    *,
    dtype: torch.dtype | None = None,
    names: Sequence[str | Sequence[str]] | None = None,
    backend: str = "auto",
    workspace_bytes: int | None = None,
) -> SpectraValues:
    """Compute the eigenvalues of the covariance of the rows of every x_i (n_i, d_i).

    :func:`grouped_covariance` and :func:`grouped_eigvalsh` in turn, biggest layers first. Equivalent to
    ``[torch.linalg.eigvalsh(torch.cov(x))[-min(x.shape):] for x in xs]``.

    Args:
        xs: The layers, as for :func:`grouped_covariance`.
        dtype: Of the covariances, as there.
        names: Of the layers, as there.
        backend: The kernels to use.
        workspace_bytes: What the matrices of a batch stay within together (one larger matrix runs alone); by
            default 64 MiB, on a GPU a third of its free memory.

    Returns:
        Of each layer m_i = min(n_i, d_i) eigenvalues (n_i with several members), ascending; the traces.

    Raises:
        ValueError: As :func:`grouped_covariance` and :func:`grouped_eigvalsh` do.

    Example:
        eigenvalues, traces = slimfast.grouped_spectra([torch.randn(8, 27), torch.randn(16, 72)])
    """
    layers, named = members_of("spectra", xs, names)
    values: list[Tensor] = [torch.empty(0, device="cpu")] * len(xs)
    traces = torch.zeros(len(xs), dtype=torch.float64, device="cpu")
    sizes = [members[0].shape[0] if len(members) > 1 else min(members[0].shape) for members in layers]
    on_cpu = all(x.is_cpu for members in layers for x in members)
    if workspace_bytes is None:
        device = layers[0][0].device if layers else torch.device("cpu")
        workspace_bytes = call_bytes(device, WORKSPACE_BYTES)
    for batch in batches_within(sizes, workspace_bytes):
        cov = grouped_covariance(
            [layers[i] for i in batch], dtype=dtype, names=[named[i] for i in batch], backend=backend
        )
        eig = grouped_eigvalsh(cov.matrices, names=[", ".join(named[i]) for i in batch], backend=backend)
        # One copy from a GPU, not one a layer; on a CPU each result keeps to its own memory.
        found = eig
        if not on_cpu:
            together = torch.cat([value.double() for value in eig]).cpu()
            found = list(torch.split(together, [len(value) for value in eig]))
        for i, value in zip(batch, found, strict=True):
            values[i] = value.double()
        traces[torch.tensor(batch, device="cpu")] = cov.traces
    return SpectraValues(values, traces)
