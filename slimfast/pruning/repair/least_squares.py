"""The least squares of one layer: weights for what it gets that stand for its weights on what it got.

A layer of the wide network computes W b + c of what it reads; in the thin one it gets a instead, fewer and
perhaps changed variables. With C = argmin E |b - C a|^2 its best weights are W C, whatever follows. Where it
has a bias, or a batch norm follows, both sides are centred and the mean goes there. All of it follows from
moments, which are summed over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.errors import NonFinite
from slimfast.kernels.cholesky_solve import grouped_cholesky_solve
from slimfast.kernels.moments import grouped_cross_covariance, grouped_moments
from slimfast.kernels.results import CrossMoments, Moments
from slimfast.pruning.repair.report import Fit

# Shares of the mean variance that damping is chosen from, by the error on the last quarter of the positions.
DAMPINGS = tuple(10.0**power for power in range(-8, 2))
# Where the search begins at the first layer, and at the others where the one before ended.
FIRST = 1e-3
# Positions that are taken in together, at least.
_TOGETHER = 2048
# Share of the mean variance that makes a matrix of weights' products definite; far below what is reported.
_JITTER = 1e-13


class Solution(NamedTuple):
    """The weights (outputs, k, taps) of a thin layer, the shift (outputs,) of its output, and the fit."""

    weight: Tensor
    shift: Tensor
    fit: Fit


class _Part(NamedTuple):
    """Moments of the variables, of them with what is missing, and of that where it is asked for."""

    gram: Moments
    cross: CrossMoments
    missing: list[Moments]


class _Means(NamedTuple):
    """Mean products of the variables (k, k), with what is missing (k, r), and of what is missing (r, r)."""

    gram: Tensor
    cross: Tensor
    missing: Tensor | None = None


class LeastSquares:
    """The least squares of one layer, or of one block of a convolution in groups.

    C = C0 + (S_ba - C0 S_aa) (S_aa + d m I)^-1 with C0 the cut itself, which keeps row ``kept[j]`` of b for
    variable j, and m the mean variance of a: no evidence, no change. d is the best of ``DAMPINGS`` on
    held-out positions, from a least damping upwards. A damping is what noise of that variance on a would do:
    the one that fits best takes a as it is, and is in the way of a training, which changes a.

    What is missing is b - C0 a; where the layer has fewer outputs, times taps, than variables, it is what its
    output misses of it, W (b - C0 a).
    """

    def __init__(self, kept: Tensor, weight: Tensor, *, centred: bool, backend: str = "auto") -> None:
        """Take the rows of b that are kept, and the wide layer's ``weight`` (outputs, L, taps), float64.

        ``centred``: take the means off both sides, which the shift makes up for.
        """
        outputs, length, taps = weight.shape
        self._kept, self._weight, self._centred, self._backend = kept, weight, centred, backend
        self._rows = weight.movedim(1, 2).reshape(outputs * taps, length)
        self._by_output = outputs * taps < length
        self._parts: dict[bool, _Part] = {}
        self._waiting: dict[bool, list[tuple[Tensor, Tensor]]] = {False: [], True: []}

    def add(self, a: Tensor, b: Tensor, *, held: bool) -> None:
        """Take in positions: a (k, s) and b (L, s), to fit to or ``held`` out; nobody is to write to them.

        Raises :class:`NonFinite` for values that are not finite.
        """
        if not a.shape[1]:
            return
        missing = _without(b, self._kept, a)
        if self._by_output:
            missing = self._rows.to(missing.dtype) @ missing
        if not bool(missing.sum().isfinite()) and not bool(missing.isfinite().all()):
            # Said now, while it is known where they come from, and not when they are taken in.
            raise NonFinite("expected finite activations, got others")
        waiting = self._waiting[held]
        waiting.append((a, missing))
        if sum(known.shape[1] for known, _ in waiting) >= _TOGETHER:
            self._take_in(held)

    def _take_in(self, held: bool) -> None:
        """Add what waits to the moments in one call, for products of few positions are slow."""
        waiting, self._waiting[held] = self._waiting[held], []
        if not waiting:
            return
        a, missing = (_joined(each) for each in zip(*waiting, strict=True))
        part = self._parts.get(held)
        into = ([part.gram], [part.cross], part.missing) if part is not None else (None, None, [])
        (gram,) = grouped_moments([a], into=into[0], backend=self._backend)
        (cross,) = grouped_cross_covariance([a], [missing], into=into[1], backend=self._backend)
        # Of what is missing itself only the held-out part is asked for.
        alone = grouped_moments([missing], into=into[2] or None, backend=self._backend) if held else []
        self._parts[held] = _Part(gram, cross, alone)

    def solve(self, spread: Tensor, damping: float = 0.0, first: float = FIRST) -> Solution:
        """Solve from the positions taken in, with at least this ``damping``; the search begins at ``first``.

        ``spread`` (L, L) is the mean square of b, about its mean where it is centred: errors are reported in
        shares of it.
        """
        for held in (False, True):
            self._take_in(held)
        outputs, length, taps = self._weight.shape
        rows = self._rows.float()
        size = float(((rows @ spread.float()) * rows).sum()) or 1.0
        found, before, best = math.inf, 0.0, 0.0
        change = self._rows.new_zeros(len(self._rows) if self._by_output else length, len(self._kept))
        mean_a, mean_missing = self._means()
        each = {which: self._about(part, mean_a, mean_missing) for which, part in self._parts.items()}
        if len(each) == 2:
            found, before, best = self._chosen(each[False], each[True], damping, first)
        if found < math.inf:
            whole = self._whole(each[False], each[True])
            (solved,) = self._solved(whole, [found])
            while solved is None:
                # To rounding no better than singular: what is known of it does not allow as little damping.
                found *= 10.0
                (solved,) = self._solved(whole, [found])
            change = solved.T
        shift = mean_missing - change @ mean_a
        if not self._by_output:
            change, shift = self._rows @ change, self._rows @ shift
        weight = self._weight[:, self._kept] + change.reshape(outputs, taps, -1).movedim(1, 2)
        return Solution(weight, shift.reshape(outputs, taps).sum(1), Fit(found, before / size, best / size))

    def _chosen(self, fit: _Means, held: _Means, damping: float, first: float) -> tuple[float, float, float]:
        """Choose the damping by the error on what was held out: (damping, error without a change, error)."""
        assert held.missing is not None
        if self._by_output:
            before = float(held.missing.trace())
        else:
            # With a factor of the weights' products what is missing counts as its outputs do.
            outer = self._rows.T @ self._rows
            before = float((outer * held.missing).sum())
            outer.diagonal().add_(_JITTER * float(outer.diagonal().mean()) or 1.0)
            factor = torch.linalg.cholesky(outer)
            fit, held = (part._replace(cross=part.cross @ factor) for part in (fit, held))
        tried = sorted({max(share, damping) for share in DAMPINGS} - {math.inf})
        if not tried:
            return math.inf, before, before

        def error(change: Tensor | None) -> float:
            if change is None:
                return math.inf
            missed = torch.addmm(held.cross, held.gram, change, beta=-2.0)
            return before + float(torch.dot(change.flatten(), missed.flatten()))

        def errors(places: Sequence[int]) -> list[float]:
            return [error(change) for change in self._solved(fit, [tried[place] for place in places])]

        place, best = _lowest(errors, len(tried), sum(share < first for share in tried))
        return (tried[place], before, best) if best < before else (math.inf, before, before)

    def _solved(self, means: _Means, dampings: Sequence[float]) -> list[Tensor | None]:
        """Solve (gram + damping m I) x = cross for each; None where it is not definite, or nothing varies."""
        scale = float(means.gram.diagonal().mean())
        if not scale > 0.0:
            return [None] * len(dampings)
        found = grouped_cholesky_solve(
            [means.gram], [means.cross], [[damping * scale for damping in dampings]], backend=self._backend
        )
        each = zip(found.solutions[0], found.failures[0].tolist(), strict=True)
        return [None if failed else solution for solution, failed in each]

    def _means(self) -> tuple[Tensor, Tensor]:
        """Compute the means of the variables and of what is missing; zeros where both sides keep theirs."""
        crosses = [part.cross for part in self._parts.values()]
        total = sum(cross.count for cross in crosses)
        if not total or not self._centred:
            r = len(self._rows) if self._by_output else self._rows.shape[1]
            return self._rows.new_zeros(len(self._kept)), self._rows.new_zeros(r)
        both = [
            torch.stack([mean * (cross.count / total) for mean, cross in zip(means, crosses, strict=True)])
            for means in ([c.mean_x for c in crosses], [c.mean_y for c in crosses])
        ]
        return both[0].sum(0), both[1].sum(0)

    def _whole(self, fit: _Means, held: _Means) -> _Means:
        counts = [self._parts[which].cross.count for which in (False, True)]
        share = counts[1] / sum(counts)
        return _Means(torch.lerp(fit.gram, held.gram, share), torch.lerp(fit.cross, held.cross, share))

    def _about(self, part: _Part, mean_a: Tensor, mean_missing: Tensor) -> _Means:
        """Bring the moments of a part, about its own means, to mean products about those of all."""
        gram, cross, missing = part
        off, off_missing = cross.mean_x - mean_a, cross.mean_y - mean_missing
        return _Means(
            torch.addr(gram.squares, off, off, beta=1.0 / gram.count),
            torch.addr(cross.products, off, off_missing, beta=1.0 / cross.count),
            *(
                torch.addr(alone.squares, off_missing, off_missing, beta=1.0 / alone.count)
                for alone in missing
            ),
        )


def _lowest(errors: Callable[[Sequence[int]], list[float]], count: int, start: int) -> tuple[int, float]:
    """Go down from ``start`` to the place whose error is below its neighbours', and give both.

    Too little damping fits noise and too much of it nothing: there is one such place.
    """
    place = min(start, count - 1)
    known: dict[int, float] = {}
    while True:
        nearby = [near for near in (place, place + 1, place - 1) if 0 <= near < count]
        fresh = [near for near in nearby if near not in known]
        known |= zip(fresh, errors(fresh) if fresh else [], strict=True)
        best = min(nearby, key=known.__getitem__)
        if best == place:
            return place, known[place]
        place = best


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Join pieces (variables, positions) along their positions, in their memory layout."""
    if len(pieces) == 1:
        return pieces[0]
    if all(piece.stride(0) == 1 for piece in pieces):
        return torch.cat([piece.T for piece in pieces]).T
    return torch.cat(list(pieces), 1)


def _without(b: Tensor, kept: Tensor, a: Tensor) -> Tensor:
    """Compute b - C0 a, in b's memory layout."""
    if b.stride(0) == 1:
        return b.T.clone().index_add_(1, kept, a.T, alpha=-1).T
    return b.clone().index_add_(0, kept, a, alpha=-1)


def worst(fits: Sequence[Fit]) -> Fit:
    """Pick the fit with the largest error of those of a layer's blocks."""
    return max(fits, key=lambda fit: fit.after or 0.0)
