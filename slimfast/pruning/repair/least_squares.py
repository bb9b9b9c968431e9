"""The least squares of one layer: weights for what it gets that stand for its weights on what it got.

A layer of the wide network computes W b + c of what it reads; in the thin one it gets a instead, fewer and
perhaps changed variables. With C = argmin E |b - C a|^2 its best weights are W C, whatever follows. Where it
has a bias, or a batch norm follows, both sides are centred and the mean goes there. All of it follows from
moments, which are summed over batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slimfast.errors import NonFinite
from slimfast.pruning.repair.parts import Part, Products, joined
from slimfast.pruning.repair.report import Fit

# Shares of the mean variance that damping is chosen from, by the error on the last quarter of the positions.
DAMPINGS = tuple(10.0**power for power in range(-8, 2))
# Where the search begins at the first layer, and at the others where the one before ended.
FIRST = 1e-3
# Share of the mean variance that makes a matrix of weights' products definite; far below what is reported.
_JITTER = 1e-13
# Directions of what is missing in which dampings are compared, where it has twice as many or more.
DIRECTIONS = 128
# Numbers of a weight that are computed with at once: 32 MiB in float64. Heads of language models are long.
_AT_ONCE = 4 << 20


class Solution(NamedTuple):
    """The weights (outputs, k, taps) of a thin layer, the shift (outputs,) of its output, and the fit."""

    weight: Tensor
    shift: Tensor
    fit: Fit


class LeastSquares:
    """The least squares of one layer, or of one block of a convolution in groups.

    C = C0 + (S_ba - C0 S_aa) (S_aa + d m I)^-1 with C0 the cut itself, which keeps row ``kept[j]`` of b for
    variable j, and m the mean variance of a: no evidence, no change. d is the best of ``DAMPINGS`` on
    held-out positions, from a least damping upwards; of outputs that miss much in many directions the error
    in ``DIRECTIONS`` random ones of them, whose expectation is that in all (Avron and Toledo, *J. ACM* 58,
    2011), as a share of what is missing in these. A damping is what noise of that variance on a would do:
    the one that fits best takes a as it is, and is in the way of a training, which changes a.

    What is missing is b - C0 a; where the layer has fewer outputs, times taps, than variables, it is what its
    output misses of it, W (b - C0 a).
    """

    def __init__(
        self,
        kept: Tensor,
        weight: Tensor,
        *,
        centred: bool,
        counts: tuple[int, int],
        backend: str = "auto",
    ) -> None:
        """Take the rows of b that are kept, and the wide layer's ``weight`` (outputs, L, taps); (outputs, L)
        of a head that stays in its file, of which some rows at a time are in memory.

        ``centred``: take the means off both sides, which the shift makes up for. ``counts``: how many
        positions will come, to fit to and held out.
        """
        outputs, length = weight.shape[:2]
        taps = weight.shape[2] if weight.dim() > 2 else 1
        self._shape = (outputs, length, taps)
        self._kept, self._weight, self._centred, self._backend = kept, weight, centred, backend
        self._by_output = outputs * taps < length
        # All of them, where those are few.
        self._rows = _rows(weight) if self._by_output else None
        # From a Gram matrix of the positions the same follows as from one of the variables.
        few = (2 * counts[0] <= len(kept), counts[1] < len(kept))
        self._parts = [Part(few=few[held], held=held, backend=backend) for held in (False, True)]

    def add(self, a: Tensor, b: Tensor, *, held: bool) -> None:
        """Take in positions: a (k, s) and b (L, s), to fit to or ``held`` out; nobody is to write to them.

        Raises :class:`NonFinite` for values that are not finite.
        """
        if not a.shape[1]:
            return
        missing = _without(b, self._kept, a)
        if self._rows is not None:
            missing = self._rows.to(missing.dtype) @ missing
        if not bool(missing.sum().isfinite()) and not bool(missing.isfinite().all()):
            # Said now, while it is known where they come from, and not when they are taken in.
            raise NonFinite("expected finite activations, got others")
        self._parts[held].add(a, missing)

    def solve(
        self, spread: Tensor, damping: float = 0.0, first: float = FIRST, outputs: Tensor | None = None
    ) -> Solution:
        """Solve as :meth:`solve_in_pieces` does; all weights are in memory."""
        pieces, fit = self.solve_in_pieces(spread, damping, first, outputs)
        count = self._shape[0] if outputs is None else len(outputs)
        device, dtype = self._weight.device, self._weight.dtype
        weight = torch.empty(count, len(self._kept), self._shape[2], dtype=dtype, device=device)
        shifts, start = torch.empty(count, dtype=torch.float64, device=device), 0
        for new, off in pieces:
            weight[start : start + len(new)], shifts[start : start + len(new)] = new, off
            start += len(new)
        return Solution(weight, shifts, fit)

    def solve_in_pieces(
        self, spread: Tensor, damping: float = 0.0, first: float = FIRST, outputs: Tensor | None = None
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], Fit]:
        """Solve from the positions taken in, with at least this ``damping``; the search begins at ``first``.

        ``spread`` (L, L) is the mean square of b, about its mean where it is centred: errors are reported in
        shares of it. ``outputs``: those that are asked for, by default all.

        Returns the weights and shifts of :class:`Solution`, some outputs after the others, and the fit.
        """
        if self._rows is not None:
            outer, rows = None, self._rows.float()
            size = float(((rows @ spread.float()) * rows).sum())
        else:
            outer = self._outer()
            size = float((outer * spread).sum())
        found, before, best = math.inf, 0.0, 0.0
        change, means = None, self._means()
        part, other = self._parts
        if part.count and other.count:
            fit, held = (each.about(*means) for each in self._parts)
            found, before, best = self._chosen(fit, held, outer, damping, first)
        if found < math.inf:
            if other.few and not part.few:
                held = other.moments_about(*means)
            whole = joined(fit, held, other.count / (part.count + other.count))
            scale = float(whole.scale())
            while change is None:
                (change,) = whole.solved([found * scale], self._backend)
                if change is None:
                    # To rounding no better than singular: what is known of it does not allow as little
                    # damping.
                    found *= 10.0
        pieces = self._written(change, *means, outputs)
        return pieces, Fit(found, before / (size or 1.0), best / (size or 1.0))

    def _chosen(
        self, fit: Products, held: Products, outer: Tensor | None, damping: float, first: float
    ) -> tuple[float, float, float]:
        """Choose the damping by the error on what was held out: (damping, error without a change, error)."""
        # With a factor of the weights' products what is missing counts as its outputs do.
        before = float(held.size() if outer is None else held.weighed(outer))
        factor = self._directions(outer)
        some = factor is not None and factor.shape[1] < len(factor)
        if factor is not None:
            fit, held = fit.turned(factor, some=False), held.turned(factor, some=some)
        # In some directions alone errors are shares of what is missing there.
        share_of = before / (float(held.size()) or 1.0) if some else 1.0
        tried = sorted({max(share, damping) for share in DAMPINGS} - {math.inf})
        scale = float(fit.scale())
        if not tried or not scale > 0.0:
            return math.inf, before, before
        # What cannot be solved is never best.
        nothing = torch.full_like(fit.scale(), -math.inf)

        def errors(places: Sequence[int]) -> list[float]:
            changes = fit.solved([tried[place] * scale for place in places], self._backend)
            gains = [nothing if change is None else held.gain(change) for change in changes]
            # One look at all of them, for which a GPU is waited for.
            return [before - gain * share_of for gain in torch.stack(gains).tolist()]

        place, best = _lowest(errors, len(tried), sum(share < first for share in tried))
        return (tried[place], before, best) if best < before else (math.inf, before, before)

    def _outer(self) -> Tensor:
        """Compute the products (L, L) of the weights, summed over outputs and taps, float64."""
        _, length, _ = self._shape
        # Where they are summed with others alone, and not factored, their digits are those of weights.
        dtype = torch.float32 if length >= 2 * DIRECTIONS else torch.float64
        dtype = torch.promote_types(dtype, self._weight.dtype)
        outer = torch.zeros(length, length, dtype=dtype, device=self._weight.device)
        for piece in self._pieces():
            rows = _rows(piece, outer.dtype)
            outer.addmm_(rows.T, rows)
        return outer.double()

    def _directions(self, outer: Tensor | None) -> Tensor | None:
        """Make a factor (r, q) of the products of what is missing in the output, whose own products are
        these: exactly, None for the identity, or in expectation where q is smaller.
        """
        if self._rows is not None:
            if len(self._rows) < 2 * DIRECTIONS:
                return None
            return _signs(len(self._rows), self._rows)
        assert outer is not None
        if len(outer) < 2 * DIRECTIONS:
            outer.diagonal().add_(_JITTER * float(outer.diagonal().mean()) or 1.0)
            exact: Tensor = torch.linalg.cholesky(outer)
            return exact
        count, _, taps = self._shape
        factor = outer.new_zeros(len(outer), DIRECTIONS)
        # Drawn as they are used: those of all of a head's outputs are larger than its pieces.
        generator = torch.Generator().manual_seed(count * taps)
        for piece in self._pieces():
            rows = _rows(piece)
            factor.addmm_(rows.T, _signs(len(rows), factor, generator))
        return factor

    def _written(
        self, change: Tensor | None, mean_a: Tensor, mean_missing: Tensor, outputs: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute the weights of these outputs, some after the others, in the dtype of the layer's, and the
        shifts, in float64.
        """
        count, _, taps = self._shape
        if outputs is None:
            outputs = torch.arange(count, device=self._weight.device)
        shift = mean_missing if change is None else mean_missing - change.T @ mean_a
        for some in torch.split(outputs, self._step()):
            own = self._weight[some].reshape(len(some), *self._shape[1:])
            if self._rows is not None:
                moved = None if change is None else change.T.reshape(count, taps, -1)[some]
                off = shift.reshape(count, taps)[some]
            else:
                rows = _rows(own, torch.promote_types(torch.float32, own.dtype))
                moved = None if change is None else (rows @ change.T.to(rows)).reshape(len(some), taps, -1)
                off = (rows.double() @ shift).reshape(len(some), taps)
            new = own[:, self._kept].double()
            new = new if moved is None else new + moved.movedim(1, 2)
            yield new.to(self._weight.dtype), off.sum(1)

    def _step(self) -> int:
        """Count the outputs that are computed with at once."""
        _, length, taps = self._shape
        return max(1, _AT_ONCE // max(1, length * taps))

    def _pieces(self) -> Iterator[Tensor]:
        """Give the weight some outputs after the others, each as (outputs, L, taps)."""
        for start in range(0, self._shape[0], self._step()):
            yield self._weight[start : start + self._step()].reshape(-1, *self._shape[1:])

    def _means(self) -> tuple[Tensor, Tensor]:
        """Compute the means of the variables and of what is missing; zeros where both sides keep theirs."""
        parts = [part for part in self._parts if part.count]
        total = sum(part.count for part in parts)
        if not total or not self._centred:
            r = self._shape[1] if self._rows is None else len(self._rows)
            zeros = functools.partial(torch.zeros, dtype=torch.float64, device=self._weight.device)
            return zeros(len(self._kept)), zeros(r)
        each = zip(*(part.means() for part in parts), strict=True)
        mean_a, mean_missing = (
            torch.stack([mean * (part.count / total) for mean, part in zip(means, parts, strict=True)]).sum(0)
            for means in each
        )
        return mean_a, mean_missing


def _rows(weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lay weights (outputs, L, taps) out as rows (outputs x taps, L)."""
    return weight.to(dtype).movedim(1, 2).reshape(-1, weight.shape[1])


def _signs(count: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw signs (count, q), always the same, of such a size that their products are the identity in
    expectation.
    """
    generator = generator or torch.Generator().manual_seed(count)
    signs = torch.randint(0, 2, (count, DIRECTIONS), generator=generator, device="cpu")
    scaled: Tensor = (2.0 * signs.to(like) - 1.0) / DIRECTIONS**0.5
    return scaled


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


def _without(b: Tensor, kept: Tensor, a: Tensor) -> Tensor:
    """Compute b - C0 a, in b's memory layout."""
    if b.stride(0) == 1:
        return b.T.clone().index_add_(1, kept, a.T, alpha=-1).T
    return b.clone().index_add_(0, kept, a, alpha=-1)


def worst(fits: Sequence[Fit]) -> Fit:
    """Pick the fit with the largest error of those of a layer's blocks."""
    return max(fits, key=lambda fit: fit.after or 0.0)
