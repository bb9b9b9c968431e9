"""Repair of what stands before dropped layers: it writes into the stream what they would have added.

The branch before a gap writes W h into the stream by a product with its weight. With r what the stream
misses behind the gap, of the deep network's there, W becomes W + argmin E |r - D h|^2: no evidence, no
change. A bias, where the product has one, takes the mean. Gaps are mended in order, so that what one leaves
is known to the next. Moments are sums over the positions that count, in float64; a token that is massive in
h or r counts no more than :data:`slimfast.calibration.massive.BOUND` times the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.calibration.forward import Slice
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.massive import BOUND
from slimfast.graph.recording.module_copies import copy_with
from slimfast.pruning.depth.divergence import run
from slimfast.pruning.depth.shorter import Names, first_tensor
from slimfast.pruning.depth.stacks import Block, Branch, Stack

# Shares of the mean square of h that the damping is chosen from, by the error on every fourth sample.
_DAMPINGS = tuple(10.0**power for power in range(-6, 3))
_HELD_OUT = 4


@dataclass(frozen=True, slots=True)
class Gap:
    """Branches that go, and the one before them: its ``writer``, and where to see the stream behind them.

    That is what ``place`` reads, or where ``gives`` what it returns, by its name in the deep network and in
    the shorter one.
    """

    writer: str
    gives: bool
    place: str
    place_after: str


@dataclass(frozen=True, slots=True)
class Mended:
    """The repair of one writer: the damping (inf: left as it was), and what the stream misses behind the gap,
    in shares of its energy, before and after, on samples that were held out.
    """

    writer: str
    damping: float
    before: float
    after: float

    @property
    def moved(self) -> bool:
        """Whether the writer has other weights than before."""
        return math.isfinite(self.damping)


def gaps_of(stacks: Sequence[Stack], gone: set[str], names: Names) -> tuple[list[Gap], list[str]]:
    """Find the gaps that dropped branches leave: those that can be mended, and why others cannot.

    ``gone``: the names of the branches that go.
    """
    gaps: list[Gap] = []
    left: list[str] = []
    for stack in stacks:
        run_of: list[tuple[Block, Branch]] = []
        before: tuple[Block, Branch] | None = None
        every = [(stack.blocks.get(name), name) for name in stack.names]
        for block, name in every:
            if block is None:
                left += [f"{name} stands behind what goes"] if run_of else []
                before, run_of = None, []
                continue
            for branch in block.branches:
                if branch.name in gone:
                    run_of.append((block, branch))
                    continue
                if run_of:
                    _close(gaps, left, before, run_of, names)
                before, run_of = (block, branch), []
        if run_of:
            _close(gaps, left, before, run_of, names)
    return gaps, left


def _close(
    gaps: list[Gap],
    left: list[str],
    before: tuple[Block, Branch] | None,
    run_of: list[tuple[Block, Branch]],
    names: Names,
) -> None:
    first = run_of[0][1].name
    if before is None:
        left.append(f"before {first} stands no branch that could write what it did")
        return
    block, branch = before
    last, ending = run_of[-1]
    if branch.writer is None or not block.plain or not last.plain:
        left.append(f"{branch.name}, before {first}, does not write into the stream by a product alone")
        return
    place = last.branches.index(ending) + 1
    if place == len(last.branches):
        gaps.append(Gap(branch.writer, True, last.name, block.name))
    else:
        reader = last.branches[place].modules[0]
        gaps.append(Gap(branch.writer, False, reader, reader))
    after = names.shorter(gaps[-1].place_after)
    writer = names.shorter(branch.writer)
    assert after is not None, "what stands before a gap stays"
    assert writer is not None, "what stands before a gap stays"
    gaps[-1] = Gap(writer, gaps[-1].gives, gaps[-1].place, after)


class _Enough(BaseException):
    """Ends a forward when all that is wanted of it was seen."""


@torch.no_grad()
def mend(
    model: nn.Module,
    short: nn.Module,
    gaps: Sequence[Gap],
    slices: Sequence[Slice],
    tick: Callable[[], None],
) -> list[Mended]:
    """Mend the gaps of ``short``, ``model`` without some layers, in place and in order."""
    if not gaps:
        return []
    # They share their tensors: what is written into the one is in the other.
    deep, thin = (copy_with(network, {}, share=True).eval() for network in (model, short))
    wanted = [_streams(deep, part, [(gap.place, gap.gives) for gap in gaps]) for part in slices]
    found = []
    for number, gap in enumerate(gaps):
        module: Any = short.get_submodule(gap.writer)
        sums = (_Sums(), _Sums())
        for place, part in enumerate(slices):
            seen = _streams(thin, part, [(gap.place_after, gap.gives), (gap.writer, False)])
            misses = wanted[place][number].double() - seen[0].double()
            held = place % _HELD_OUT == _HELD_OUT - 1 and len(slices) >= _HELD_OUT
            sums[held].add(seen[1].double(), misses, wanted[place][number].double(), part.mask)
        found.append(_solve(gap.writer, module, sums, centred=module.bias is not None))
        tick()
    return found


def _streams(network: nn.Module, part: Slice, places: Sequence[tuple[str, bool]]) -> list[Tensor]:
    """Run a network up to the last of these places: what each reads, or where the flag is set returns."""
    seen: dict[int, Tensor] = {}

    def take(number: int, value: Any) -> None:
        tensor = first_tensor(value)
        assert tensor is not None, "a stream is a tensor"
        seen[number] = tensor.detach().clone()
        if len(seen) == len(places):
            raise _Enough

    with ExitStack() as hooks:
        for number, (path, gives) in enumerate(places):
            module = network.get_submodule(path)
            if gives:
                handle = module.register_forward_hook(lambda m, a, out, n=number: take(n, out))
            else:
                handle = module.register_forward_pre_hook(
                    lambda m, a, k, n=number: take(n, (*a, *k.values())), with_kwargs=True
                )
            hooks.callback(handle.remove)
        with suppress(_Enough):
            run(network, part.args)
    return [seen[number] for number in range(len(places))]


class _Sums:
    """Sums of products over positions: of what a writer reads with a 1 behind it, and of what is missed."""

    def __init__(self) -> None:
        self.squares: Tensor | None = None
        self.products: Tensor | None = None
        self.missed = self.energy = 0.0

    def add(self, read: Tensor, misses: Tensor, stream: Tensor, mask: Tensor | None) -> None:
        """Take in the positions of one slice that count."""
        counting = positions_that_count(read.shape[:-1], mask)
        weights = _typical(read, counting) * _typical(misses, counting)
        if counting is not None:
            weights = weights * counting
        w = weights.reshape(-1, 1)
        h = torch.cat([read.flatten(0, -2), torch.ones_like(w, device=w.device)], 1) * w
        r = misses.flatten(0, -2) * w
        squares, products = h.T @ h, h.T @ r
        self.squares = squares if self.squares is None else self.squares + squares
        self.products = products if self.products is None else self.products + products
        self.missed += float(r.square().sum())
        self.energy += float((stream.flatten(0, -2) * w).square().sum())

    def error(self, change: Tensor) -> float:
        """Compute what is missed after a change."""
        assert self.squares is not None, "something was added"
        assert self.products is not None, "something was added"
        gain = 2.0 * (change * self.products).sum() - (change * (self.squares @ change)).sum()
        return self.missed - float(gain)


def _typical(x: Tensor, counting: Tensor | None) -> Tensor:
    """Find the factors (samples, ...) that bring massive positions down to the bound; 1 where a sample has
    one position.
    """
    norms = torch.linalg.vector_norm(x, dim=-1)
    if norms.dim() == 1:
        return torch.ones_like(norms, device=x.device)
    told = norms if counting is None else norms.masked_fill(~counting, torch.nan)
    middle = told.flatten(1).nanmedian(1).values.reshape(-1, *[1] * (norms.dim() - 1))
    bound = BOUND**0.5 * middle
    return torch.where((norms > bound) & (bound > 0), bound / norms, torch.ones_like(norms, device=x.device))


def _solve(writer: str, module: Any, sums: tuple[_Sums, _Sums], *, centred: bool) -> Mended:
    fit, held = sums
    assert fit.squares is not None, "there are samples to fit to"
    assert fit.products is not None, "there are samples to fit to"
    judge = held if held.squares is not None else fit
    before, best, chosen = judge.missed, judge.missed, None
    damping = float("inf")
    for share, change in _changes(fit.squares, fit.products, centred):
        error = judge.error(change)
        if error < best:
            best, chosen, damping = error, share, share
    scale = judge.energy or 1.0
    if chosen is None:
        return Mended(writer, damping, before / scale, before / scale)
    squares, products = fit.squares, fit.products
    if held.squares is not None and held.products is not None:
        squares, products = squares + held.squares, products + held.products
    change = next(_changes(squares, products, centred, (chosen,)))[1]
    # Conv1D of GPT-2 has its weight the other way round.
    moved = change[:-1].T if isinstance(module, nn.Linear) else change[:-1]
    module.weight.add_(moved.to(module.weight))
    if centred:
        module.bias.add_(change[-1].to(module.bias))
    return Mended(writer, damping, before / scale, best / scale)


def _changes(
    squares: Tensor, products: Tensor, centred: bool, shares: Sequence[float] = _DAMPINGS
) -> Iterator[tuple[float, Tensor]]:
    """Solve for the change (k + 1, d) with each damping; its last row, a shift, is 0 unless ``centred``."""
    size = len(squares) if centred else len(squares) - 1
    scale = float(squares.diagonal()[:-1].mean())
    for share in shares:
        damped = squares[:size, :size].clone()
        damped.diagonal()[: len(squares) - 1].add_(share * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        change = torch.zeros_like(products, device=products.device)
        change[:size] = torch.cholesky_solve(products[:size], factor)
        yield share, change
