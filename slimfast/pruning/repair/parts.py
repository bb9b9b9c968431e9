"""The positions that a layer's least squares take in: as moments, or as they are where they are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from slimfast.kernels.cholesky_solve import grouped_cholesky_solve
from slimfast.kernels.moments import grouped_cross_covariance, grouped_moments
from slimfast.kernels.results import CrossMoments, Moments

# Positions that are taken in together, at least.
_TOGETHER = 2048


class ByMoments(NamedTuple):
    """Mean products of the variables (k, k), with what is missing (k, r), and of what is missing (r, r) where
    that is asked for.
    """

    gram: Tensor
    cross: Tensor
    missing: Tensor | None = None

    def turned(self, factor: Tensor, *, some: bool) -> ByMoments:
        """Take what is missing times a factor (r, q); its own products where ``some`` of it are left."""
        own = factor.T @ (self.missing @ factor) if some and self.missing is not None else None
        return ByMoments(self.gram, self.cross @ factor, own)

    def size(self) -> Tensor:
        """Compute the mean square of what is missing, about which errors are."""
        assert self.missing is not None
        return self.missing.trace()

    def weighed(self, outer: Tensor) -> Tensor:
        """Compute the mean square of a layer's output on what is missing, by its weights' products."""
        assert self.missing is not None
        return (outer * self.missing).sum()

    def scale(self) -> Tensor:
        """Compute the mean variance of the variables."""
        return self.gram.diagonal().mean()

    def solved(self, dampings: Sequence[float], backend: str) -> list[Tensor | None]:
        """Solve for the change (k, r) with each damping; None where that cannot be."""
        return _solved(self.gram, self.cross, dampings, backend)

    def gain(self, change: Tensor) -> Tensor:
        """Compute by how much a change lowers what is missing, as a mean square."""
        return -torch.dot(change.flatten(), torch.addmm(self.cross, self.gram, change, beta=-2.0).flatten())


class ByPositions(NamedTuple):
    """The variables (k, n) and what is missing (r, n) at positions fewer than the variables."""

    a: Tensor
    missing: Tensor

    def turned(self, factor: Tensor, *, some: bool) -> ByPositions:
        """Take what is missing times a factor (r, q), all or ``some`` of it."""
        return ByPositions(self.a, factor.T @ self.missing)

    def size(self) -> Tensor:
        """Compute the mean square of what is missing."""
        return self.missing.square().sum() / self.missing.shape[1]

    def weighed(self, outer: Tensor) -> Tensor:
        """Compute the mean square of a layer's output on what is missing, by its weights' products."""
        return ((outer @ self.missing) * self.missing).sum() / self.missing.shape[1]

    def scale(self) -> Tensor:
        """Compute the mean variance of the variables."""
        return self.a.square().sum() / self.a.numel()

    def solved(self, dampings: Sequence[float], backend: str) -> list[Tensor | None]:
        """Solve for the change (k, r) with each damping: (a a' + d I)^-1 a m' is a (a' a + d I)^-1 m'."""
        count = self.a.shape[1]
        many = _solved(self.a.T @ self.a, self.missing.T, [count * d for d in dampings], backend)
        return [None if found is None else self.a @ found for found in many]

    def gain(self, change: Tensor) -> Tensor:
        """Compute by how much a change lowers what is missing, as a mean square."""
        explained = change.T @ self.a
        return (explained * (2.0 * self.missing - explained)).sum() / self.a.shape[1]


Products: TypeAlias = ByMoments | ByPositions


def _solved(a: Tensor, b: Tensor, dampings: Sequence[float], backend: str) -> list[Tensor | None]:
    found = grouped_cholesky_solve([a], [b], [list(dampings)], backend=backend)
    each = zip(found.solutions[0], found.failures[0].tolist(), strict=True)
    return [None if failed else solution for solution, failed in each]


class Part:
    """Positions of one kind, to fit to or held out: the variables, and what is missing there."""

    def __init__(self, *, few: bool, held: bool, backend: str) -> None:
        """Begin with none; ``few``: keep them as they are, and not their moments alone.

        Of what is missing itself only the ``held``-out part is asked for.
        """
        self.few = few
        self._held, self._backend = held, backend
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._moments: tuple[list[Moments], list[CrossMoments], list[Moments]] | None = None
        self.count = 0

    def add(self, a: Tensor, missing: Tensor) -> None:
        """Take in positions (k, s) and (r, s), which nobody is to write to."""
        self._waiting.append((a, missing))
        self.count += a.shape[1]
        if not self.few and sum(known.shape[1] for known, _ in self._waiting) >= _TOGETHER:
            self._take_in()

    def means(self) -> tuple[Tensor, Tensor]:
        """Compute the mean of the variables, and of what is missing."""
        if self.few:
            a, missing = self._positions()
            return a.mean(1, dtype=torch.float64), missing.mean(1, dtype=torch.float64)
        _, (cross,), _ = self._take_in()
        return cross.mean_x, cross.mean_y

    def about(self, mean_a: Tensor, mean_missing: Tensor) -> Products:
        """Give what is known of the positions, about these means."""
        of = self.positions_about if self.few else self.moments_about
        return of(mean_a, mean_missing)

    def positions_about(self, mean_a: Tensor, mean_missing: Tensor) -> ByPositions:
        """Give the few positions themselves, about these means."""
        a, missing = self._positions()
        return ByPositions(a - mean_a[:, None], missing - mean_missing[:, None])

    def moments_about(self, mean_a: Tensor, mean_missing: Tensor) -> ByMoments:
        """Bring the moments to mean products about other means, in place: they are used up."""
        (gram,), (cross,), missing = self._take_in()
        self._moments = None
        off, off_missing = cross.mean_x - mean_a, cross.mean_y - mean_missing
        return ByMoments(
            gram.squares.addr_(off, off, beta=1.0 / gram.count),
            cross.products.addr_(off, off_missing, beta=1.0 / cross.count),
            *(alone.squares.addr_(off_missing, off_missing, beta=1.0 / alone.count) for alone in missing),
        )

    def _positions(self) -> tuple[Tensor, Tensor]:
        """Join what waits."""
        a, missing = (_joined(each) for each in zip(*self._waiting, strict=True))
        self._waiting = [(a, missing)]
        return a, missing

    def _take_in(self) -> tuple[list[Moments], list[CrossMoments], list[Moments]]:
        """Add what waits to the moments in one call, for products of few positions are slow."""
        if self._waiting:
            a, missing = self._positions()
            gram, cross, alone = self._moments or (None, None, None)
            gram = grouped_moments([a], into=gram, backend=self._backend)
            cross = grouped_cross_covariance([a], [missing], into=cross, backend=self._backend)
            asked = self._held and not self.few
            alone = grouped_moments([missing], into=alone, backend=self._backend) if asked else []
            self._moments, self._waiting = (gram, cross, alone), []
        assert self._moments is not None
        return self._moments


def joined(fit: Products, held: Products, share: float) -> Products:
    """Give what is known of the positions of two parts, the second with this share of them; the first is used
    up.
    """
    if isinstance(fit, ByPositions):
        assert isinstance(held, ByPositions)
        return ByPositions(torch.cat([fit.a, held.a], 1), torch.cat([fit.missing, held.missing], 1))
    assert isinstance(held, ByMoments)
    return ByMoments(fit.gram.lerp_(held.gram, share), fit.cross.lerp_(held.cross, share))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Join pieces (variables, positions) along their positions, in their memory layout."""
    if len(pieces) == 1:
        return pieces[0]
    if all(piece.stride(0) == 1 for piece in pieces):
        return torch.cat([piece.T for piece in pieces]).T
    return torch.cat(list(pieces), 1)
