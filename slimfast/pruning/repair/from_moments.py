"""Repair from the moments of a calibration alone: no network runs, and every layer is solved by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration.batch_norms import norms_of
from slimfast.calibration.consumers import Consumer, consumers_of, kept_variables
from slimfast.calibration.data import Calibration, Reading, check_calibration
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.repair.least_squares import DAMPINGS, worst
from slimfast.pruning.repair.report import Finished, Fit, RepairReport
from slimfast.pruning.repair.writing import write_weight


def repair_from_moments(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    calibration: Calibration,
    *,
    damping: float = 0.0,
    tick: Callable[[int, int], None] | None = None,
    finished: Finished | None = None,
) -> RepairReport:
    """Repair ``thin``, ``model`` cut to ``keeps``, in place by the moments of what ``model``'s layers read.

    A layer that computes W x + c of x, of which the variables a stay, gets W C with C = E[x a'] (E[a a'] + d
    m I)^-1 as a pull towards the plain cut, m the mean variance of a; with a bias both are about their means,
    and the bias takes those. So it is best for what the wide network's layer read, and does not know what the
    layers before it have become: the sequential repair from activations does. d is chosen, from ``damping``
    upwards, by generalised cross-validation (Golub, Heath and Wahba, *Technometrics* 21, 1979), which tells
    from the moments and the number of positions alone.

    Arguments as in :func:`slimfast.pruning.repair.activations.repair_from_activations`. Raises
    :class:`SlimfastError` for a network with batch norms, whose statistics need a forward.
    """
    finished = finished or Finished({}, lambda weight, fit: None)
    if norms := norms_of(thin):
        raise SlimfastError(
            f"repair: 'moments' runs no network, and batch norms as {next(iter(norms))} need new statistics: "
            f"repair='activations' measures them"
        )
    consumers, left = consumers_of(model, graph)
    check_calibration(calibration, graph.effective(named_tensors(model)), consumers)
    tensors, kept = graph.made(named_tensors(model)), Cut(graph, keeps).kept_indices
    fits = dict(finished.fits)
    for done, consumer in enumerate(consumers, 1):
        reading = calibration.readings.get(consumer.weight)
        alive = kept_variables(consumer, kept(consumer.axis), kept(consumer.outputs))
        if reading is None:
            was = f"{consumer.module} was not calibrated"
            left[consumer.weight] = calibration.left.get(consumer.weight, was)
        elif consumer.weight not in fits and len(alive[1]) < consumer.length // consumer.blocks:
            found = _repaired(
                consumer,
                thin.get_submodule(consumer.module),
                reading,
                tensors[consumer.weight],
                alive,
                kept(consumer.outputs),
                damping,
            )
            if isinstance(found, str):
                left[consumer.weight] = found
            else:
                fits[consumer.weight] = found
                finished.note(consumer.weight, found)
        if tick is not None:
            tick(done, len(consumers))
    return RepairReport("moments", fits, (), left)


@torch.no_grad()
def _repaired(
    consumer: Consumer,
    module: Any,
    reading: Reading,
    weight: Tensor,
    alive: tuple[IntArray, IntArray],
    outputs: IntArray,
    damping: float,
) -> Fit | str:
    """Write a layer's best weights, and say how well they fit, or why it cannot have them."""
    wide, bias = consumer.matrix(weight.detach()), module._parameters.get("bias")
    blocks, kept = alive[0].tolist(), torch.from_numpy(alive[1])
    length, per_block = consumer.length // consumer.blocks, wide.shape[1]
    rows = outputs.reshape(len(blocks), -1) % per_block if consumer.blocks > 1 else outputs[None]
    parts, shifts, fits = [], [], []
    for block, own in zip(blocks, rows, strict=True):
        span = slice(block * length, (block + 1) * length)
        mean = reading.mean[span]
        products = reading.covariance[span, span] * ((reading.count - 1) / reading.count)
        if bias is None:
            products = products + torch.outer(mean, mean)
        # As rows of its outputs and taps, on the processor, where the moments are.
        matrix = wide[block].double().cpu().movedim(1, 2)
        solved = _solved(products, kept, matrix.reshape(-1, length), reading.count, damping)
        new = matrix[torch.from_numpy(own)] @ solved.combination
        parts.append(new.movedim(1, 2))
        moved = mean - solved.combination @ mean[kept]
        shifts.append((matrix[torch.from_numpy(own)] @ moved).sum(1))
        fits.append(solved.fit)
    laid_out = torch.cat(parts).to(weight.device, weight.dtype)
    why = write_weight(module, consumer.weight_of(laid_out, weight))
    if why is not None:
        return f"{consumer.module}: {why}"
    if bias is not None:
        bias += torch.cat(shifts).to(bias)
    return worst(fits)


class _Solved(NamedTuple):
    """All variables as a combination (L, k) of those that stay, and how well they stand for the others."""

    combination: Tensor
    fit: Fit


def _solved(products: Tensor, kept: Tensor, rows: Tensor, count: int, damping: float) -> _Solved:
    """Solve one block: ``products`` (L, L) of what is read, ``rows`` (r, L) of weights, float64.

    What is missing is in the variables that go; the eigenvectors of the products of those that stay give the
    error of every damping at once.
    """
    length, place = len(products), torch.arange(len(kept), device="cpu")
    plain = products.new_zeros(length, len(kept))
    plain[kept, place] = 1.0
    gone = torch.ones(length, dtype=torch.bool, device="cpu")
    gone[kept] = False
    inner, cross = products[kept][:, kept], products[gone][:, kept]
    lost = rows[:, gone]
    before = float(((lost @ products[gone][:, gone]) * lost).sum())
    size = float(((rows @ products) * rows).sum()) or 1.0
    scale = float(inner.diagonal().mean())
    if not (scale > 0.0 and before > 0.0):
        return _Solved(plain, Fit(math.inf, before / size, before / size))
    values, vectors = torch.linalg.eigh(inner)
    values = values.clamp_min(0.0)
    turned = cross @ vectors
    seen = (lost @ turned).square().sum(0)
    share, best = _chosen(values, seen, before, count, damping, scale)
    if math.isinf(share):
        return _Solved(plain, Fit(math.inf, before / size, before / size))
    plain[gone] = (turned / (values + share * scale)) @ vectors.T
    return _Solved(plain, Fit(share, before / size, best / size))


def _chosen(
    values: Tensor, seen: Tensor, before: float, count: int, damping: float, scale: float
) -> tuple[float, float]:
    """Choose the damping by generalised cross-validation: it and the error it tells; infinite for none.

    ``values`` (k,): eigenvalues of what stays; ``seen`` (k,): squares of what is missing along each of them.
    """
    found, best = math.inf, before
    tried: Sequence[float] = sorted({max(share, damping) for share in DAMPINGS} - {math.inf})
    for share in tried:
        damped = values + share * scale
        error = before - float((seen * (values + 2.0 * share * scale) / damped.square()).sum())
        freedom = float((values / damped).sum())
        if freedom < count:
            told = max(error, 0.0) / (1.0 - freedom / count) ** 2
            if told < best:
                found, best = share, told
    return found, best
