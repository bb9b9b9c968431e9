"""What a backend is: the functions that its module has, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from slimfast.errors import BackendUnavailable, SlimfastError
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.results import CrossMoments, Moments

Results = TypeVar("Results")


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Results]):
    """An op whose tables, workspaces and results are in place.

    ``launch()`` starts the kernels on the current stream and does nothing else: no allocation, no copy from
    the host, no wait. They read the inputs from where they were when the call was made ready and write
    ``results`` anew. All of that memory lives as long as this object does: keep it as long as a graph that it
    was captured in, and until its launches are done. A launch on another stream than the one it was made
    ready on waits for that one by the caller's means, as every use of a tensor does.
    """

    results: Results
    launch: Callable[[], None]


def host_table(size: int, device: torch.device) -> Tensor:
    """Allocate (size,) int64 on the host, from where a copy to ``device`` need not be waited for.

    Raises :class:`SlimfastError` while a graph is captured: every replay would copy from memory that has been
    given away since.
    """
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        raise SlimfastError(
            "graph capture: expected calls made ready before it (slimfast.kernels.prepare_*), got one that "
            "copies tables from the host"
        )
    return torch.empty(size, dtype=torch.int64, pin_memory=on_gpu, device="cpu")


# For each op that a backend can make ready: what makes a call of it.
PreparedOps: TypeAlias = Mapping[str, Callable[..., Prepared[Any]]]


@runtime_checkable
class Backend(Protocol):
    """The functions of a backend's module; what they are given was checked before.

    A backend without kernels for an op says so by ``why_not`` and is not called for it.
    """

    __name__: str
    PREPARE: PreparedOps

    def why_not(self, op: str, inputs: Sequence[Tensor]) -> list[str]:
        """List every reason why it cannot run ``op`` on these tensors; empty where it can."""

    def covariance(
        self, xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]
    ) -> tuple[list[Tensor], Tensor]:
        """Compute the covariances of layers of one member, and their traces (g,): by rows where
        ``rows[i]``.
        """

    def joint_covariance(
        self, layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype]
    ) -> tuple[list[Tensor], Tensor]:
        """Compute the same for layers of several members, always by rows where there are two or more."""

    def eigvalsh(self, mats: list[Tensor]) -> list[Tensor]:
        """Compute the eigenvalues of each matrix, ascending; NaN for a matrix that is not finite."""

    def eigvalsh_stacked(self, mats: Tensor) -> Tensor:
        """Compute the eigenvalues (b, m) of a stack (b, m, m)."""

    def pivoted_cholesky(self, mats: list[Tensor], ranks: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Compute (order, factor, residual) of each matrix."""

    def moments(
        self, xs: list[Tensor], masks: list[Tensor | None], into: list[Moments], dtypes: list[torch.dtype]
    ) -> None:
        """Add the moments of each x (variables, positions ...) at the positions that its mask (positions ...)
        leaves, from products in ``dtypes[i]``.
        """

    def cross_covariance(
        self,
        xs: list[Tensor],
        ys: list[Tensor],
        masks: list[Tensor | None],
        into: list[CrossMoments],
        dtypes: list[torch.dtype],
    ) -> None:
        """Add those of each x with each y, of the same positions."""

    def patch_moments(
        self,
        xs: list[Tensor],
        convolutions: list[Convolution],
        into: list[Moments],
        dtypes: list[torch.dtype],
    ) -> None:
        """Add those of the patches that each convolution reads of x (N, C, ...)."""

    def cholesky_solve(
        self, mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute (solutions, failures) of each damped system."""

    def gather(self, tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
        """Copy the kept indices to contiguous tensors."""


def why_absent(kind: str, op: str) -> str:
    """Say why a backend does not run an op that it has no kernel for; ``kind``: of its kernels."""
    return f"there is no {kind} kernel for {op}"


def absent(backend: str, kind: str, op: str) -> Callable[..., NoReturn]:
    """Make the function of an op that a backend has no kernel for: it refuses."""

    def refuse(*args: object) -> NoReturn:
        raise BackendUnavailable(f"{op}: backend {backend!r} cannot run: {why_absent(kind, op)}")

    return refuse


def member_by_member(
    covariance: Callable[[list[Tensor], list[bool], list[torch.dtype]], tuple[list[Tensor], Tensor]],
    layers: list[list[Tensor]],
    rows: list[bool],
    dtypes: list[torch.dtype],
) -> tuple[list[Tensor], Tensor]:
    """Add up the covariances of the members of layers, for a backend that takes one member at a time."""
    matrices: list[Tensor] = [torch.empty(0, device="cpu")] * len(layers)
    traces: list[Tensor] = list(matrices)
    # One turn's matrices beside the sums are all that is alive.
    for turn in range(max(len(members) for members in layers)):
        members_now = [i for i, members in enumerate(layers) if len(members) > turn]
        terms, term_traces = covariance(
            [layers[i][turn] for i in members_now],
            [rows[i] for i in members_now],
            [dtypes[i] for i in members_now],
        )
        for i, term, trace in zip(members_now, terms, term_traces.unbind(), strict=True):
            d = sum(x.shape[1] for x in layers[i])
            share = max(layers[i][turn].shape[1] - 1, 1) / max(d - 1, 1)
            matrices[i] = term.mul_(share) if turn == 0 else matrices[i].add_(term, alpha=share)
            traces[i] = trace * share if turn == 0 else traces[i] + trace * share
    return matrices, torch.stack(traces)
