"""How much each unit of a group counts: norms, distances and batch norm scales, larger ones to stay."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup, Member
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.spectra.unit_matrices import unit_matrix
from slimfast.storage.stored_tensors import is_long

Score: TypeAlias = Literal["l1", "l2", "lookahead", "geometric_median", "bn_scale"]

# Rows of the distance matrix computed at once, in float64 elements: 32 MiB.
_BLOCK = 1 << 22
# Elements of a matrix converted at once: 2 MiB in float64, enough for PyTorch to share them out over threads.
_ROWS = 1 << 18
# Squared distances below this share of the squared norms are rounding: the filters are the same.
_SAME = 1e-12
# Scores of equal filters differ by rounding; those closer than this share of the largest one are ties.
_TIE = 2.0**-36


def weight_rows(graph: ChannelGraph, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Gather the weights that produce each unit: per producer a matrix (n, d_m), row u for unit u."""
    rows = [unit_matrix(tensors[m.tensor].detach(), m.dim, m.units) for m in graph.producers(group)]
    return [x.to(rows[0].device) for x in rows]


def unit_scores(
    model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], method: Score
) -> Callable[[ChannelGroup], np.ndarray]:
    """Make the function that scores the units of one of ``groups``, float64 (n,).

    What each method measures: :func:`slimfast.select`. Weights are those that the layers of ``graph`` compute
    with; a unit of which they are all 0 is dead and scores -1, less than any that is alive.

    Raises:
        ValueError: groups without a batch norm, by ``bn_scale``.
        SlimfastError: weights that are not finite, where the function comes to them.
    """
    tensors = graph.effective(named_tensors(model))
    if method == "bn_scale":
        _check_batch_norms(model, graph, groups)
    sums = _unit_sums(tensors, Tensor.abs_ if method == "l1" else Tensor.square_)

    def scores(group: ChannelGroup) -> np.ndarray:
        produced = sums(graph.producers(group), group.n)
        if method == "bn_scale":
            values = _bn_scale(model, graph, group, tensors)
        elif method == "geometric_median":
            values = _geometric_median(weight_rows(graph, group, tensors), group.n)
        elif method == "lookahead":
            consumers = graph.consumers(group)
            # What no weights read is measured on what makes it alone.
            read = sums(consumers, group.n) if consumers else 1.0
            values = _snapped(np.sqrt(produced * read))
        else:
            values = produced if method == "l1" else np.sqrt(produced)
        if not np.isfinite(values).all():
            raise SlimfastError(_not_finite(group, tensors))
        return np.where(produced == 0.0, -1.0, values)

    return scores


def _unit_sums(
    tensors: Mapping[str, Tensor], size: Callable[[Tensor], Tensor]
) -> Callable[[Iterable[Member], int], np.ndarray]:
    """Make the function that sums the ``size`` of all elements of each of n units, over members, (n,)."""

    @functools.cache
    def of_slices(tensor: str, dim: int) -> np.ndarray:
        # heads and their dimensions are groups of the same slices
        found: np.ndarray = _slice_sums(tensors[tensor].detach(), dim, size).cpu().numpy()
        return found

    def sums(members: Iterable[Member], n: int) -> np.ndarray:
        total = np.zeros(n)
        for member in members:
            slices, places = of_slices(member.tensor, member.dim), member.places
            total += np.bincount(places.units, slices[places.indices], n)
        return total

    return sums


def _slice_sums(tensor: Tensor, dim: int, size: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum the ``size`` of all elements of each slice of ``dim``, (n,) float64.

    A copy of the tensor is read in the order in which it is stored, a block in the cache at a time; sums over
    the outer dims come first, because they run along what is stored side by side.
    """
    before, n = math.prod(tensor.shape[:dim]), tensor.shape[dim]
    along = 1 if before == 1 else 0
    count = n if along else before
    step = max(1, _ROWS * count // max(1, tensor.numel()))
    parts: Iterable[Tensor]
    if is_long(tensor):
        # A head's rows come from their file as they are asked for.
        rows = (tensor[start : start + step] for start in range(0, count, step))
        parts = (part.reshape((1, -1, tensor.shape[1]) if along else (-1, n, 1)) for part in rows)
    else:
        parts = torch.split(tensor.reshape(before, n, -1), step, along)
    blocks = (size(part.to(torch.float64, copy=True)) for part in parts)
    if along:
        return torch.cat([block[0].sum(1) for block in blocks])
    return functools.reduce(Tensor.add_, (block.sum(0) for block in blocks)).sum(1)


def _geometric_median(rows: list[Tensor], n: int) -> np.ndarray:
    """Sum the Euclidean distances of each unit to all others, (n,), over the rows of all members joined."""
    rows = [x.to(torch.float64) for x in rows]
    squares = _sum([x.square().sum(1) for x in rows], n)
    scores = np.empty(n)
    for start in range(0, n, max(1, _BLOCK // n)):
        stop = min(start + max(1, _BLOCK // n), n)
        products = _sum([x[start:stop] @ x.T for x in rows], n)
        norms = squares[start:stop, None] + squares[None, :]
        distances = norms - 2.0 * products
        # The root would make a visible distance of the rounding between a filter and its equal.
        distances[distances <= _SAME * norms] = 0.0
        scores[start:stop] = np.sqrt(distances).sum(1)
    return _snapped(scores)


def _snapped(scores: np.ndarray) -> np.ndarray:
    """Round scores to a grid that still tells filters apart, but not two that are the same."""
    step = float(scores.max(initial=0.0)) * _TIE
    return np.round(scores / step) * step if step > 0.0 else scores


def _sum(terms: list[Tensor], n: int) -> np.ndarray:
    """Sum tensors of one shape, as float64 numpy; zeros (n,) where there is none."""
    if not terms:
        return np.zeros(n)
    total: np.ndarray = torch.stack(terms).sum(0).cpu().numpy()
    return total


def _batch_norm_scales(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> list[Member]:
    """List the members of a group that are the scale of a batch norm, as it computes with it."""
    modules = dict(model.named_modules())
    scales = []
    for member in graph.measured(group):
        prefix, _, name = member.tensor.rpartition(".")
        if name == "weight" and isinstance(modules.get(prefix), nn.modules.batchnorm._BatchNorm):
            scales.append(member)
    return scales


def _check_batch_norms(model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
    without = [group.name for group in groups if not _batch_norm_scales(model, graph, group)]
    if without:
        raise ArgumentError(
            f"select: bn_scale needs a batch norm with a scale in every group; none in {', '.join(without)}"
        )


def _bn_scale(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, tensors: Mapping[str, Tensor]
) -> np.ndarray:
    scores = np.zeros(group.n)
    for member in _batch_norm_scales(model, graph, group):
        gamma = tensors[member.tensor].detach().abs().to("cpu", torch.float64).numpy()
        np.add.at(scores, member.places.units, gamma[member.places.indices])
    return scores


def _not_finite(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> str:
    for member in group.members:
        weight = tensors[member.tensor]
        bad = weight.numel() - int(weight.isfinite().sum())
        if bad:
            return (
                f"select: expected finite weights, got {bad} that are not in {member.tensor} ({group.name})"
            )
    return f"select: the weights are too large to be measured in float64 ({group.name})"
