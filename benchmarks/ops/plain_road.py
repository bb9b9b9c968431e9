"""The road of moments, curves and repair as a user of PyTorch would write it: what ours is measured beside.

Which layers read what, and what stays of them, is taken from slimfast's graph; all that is computed is plain
PyTorch: float32 products of whole batches, one ``eigh`` a layer for all dampings, LAPACK's pivoted Cholesky,
and forwards of all samples in one batch, which needs the memory for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import scipy.linalg
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.calibration import Calibration
from slimfast.calibration.batch_norms import norms_of
from slimfast.calibration.consumers import Consumer, consumers_of, input_of, kept_variables
from slimfast.calibration.moments import unit_covariance
from slimfast.calibration.positions import picked, wanted
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.pruning.repair.least_squares import DAMPINGS

# Runs all samples through a network.
Forward: TypeAlias = Callable[[nn.Module], Any]
Moments: TypeAlias = tuple[Tensor, Tensor, int]


def watch(network: nn.Module, consumers: Sequence[Consumer], look: Callable[..., Any]) -> ExitStack:
    """Call ``look(consumer, module, x)`` with what each layer is about to read, until the stack is closed."""

    def hook(consumer: Consumer, module: nn.Module, args: Any, kwargs: Any) -> None:
        look(consumer, module, input_of(args, kwargs))

    stack = ExitStack()
    for consumer in consumers:
        module = network.get_submodule(consumer.module)
        own = functools.partial(hook, consumer)
        stack.callback(module.register_forward_pre_hook(own, with_kwargs=True).remove)
    return stack


@torch.no_grad()
def moments(network: nn.Module, consumers: Sequence[Consumer], forward: Forward) -> dict[str, Moments]:
    """Sums and products of what each layer reads; one product for neighbours that read the same."""
    found: dict[str, Moments] = {}
    last: list[Any] = [None, None]

    def look(consumer: Consumer, module: nn.Module, x: Tensor) -> None:
        if x is not last[0]:
            columns = consumer.columns(x)
            last[:] = [x, (columns.sum(1).double(), (columns @ columns.T).double(), columns.shape[1])]
        total, products, count = found.get(consumer.weight, (0, 0, 0))
        more = last[1]
        found[consumer.weight] = (total + more[0], products + more[1], count + more[2])

    with watch(network, consumers, look):
        forward(network)
    return found


def curves(
    network: nn.Module, graph: ChannelGraph, calibration: Calibration, batches: Sequence[Any]
) -> dict[str, Tensor]:
    """What each group's units lose by pivoted Cholesky, times what the output feels of them."""
    consumers = {consumer.weight: consumer for consumer in consumers_of(network, graph)[0]}
    felt: dict[str, Tensor] = {}

    def look(consumer: Consumer, module: nn.Module, x: Tensor) -> None:
        def feel(gradient: Tensor) -> None:
            view, slope = consumer.laid_out(x.detach()), consumer.laid_out(gradient)
            change = (view * slope).reshape(len(view), -1, view.shape[-1]).sum(1)
            felt[consumer.weight] = felt.get(consumer.weight, 0) + change.square().sum(0)

        if x.requires_grad:
            x.register_hook(feel)

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with watch(network, list(consumers.values()), look):
        for batch in batches:
            if isinstance(batch, dict):
                embedded = network.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
                output = network(inputs_embeds=embedded.requires_grad_()).logits
            else:
                output = network(batch.clone().requires_grad_())
            (output * torch.randint(2, output.shape, dtype=output.dtype).mul_(2).sub_(1)).sum().backward()
    found = {}
    for group in graph:
        covariance = unit_covariance(graph, group, consumers, calibration)
        if covariance is not None:
            factor, *_ = scipy.linalg.lapack.dpstrf(covariance.numpy(), lower=1)
            found[group.name] = torch.from_numpy(factor).tril().square().sum(0)
    return found


@torch.no_grad()
def repair(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    forward: Forward,
) -> nn.Module:
    """Least squares into each layer of ``thin`` as its one forward of all samples reaches it."""
    consumers = consumers_of(model, graph)[0]
    kept = Cut(graph, keeps).kept_indices
    wide: dict[str, Tensor] = {}

    def keep(consumer: Consumer, module: nn.Module, x: Tensor) -> None:
        wide[consumer.weight] = _columns(consumer, x)

    with watch(model, consumers, keep):
        forward(model)

    def solve(consumer: Consumer, module: Any, x: Tensor) -> None:
        outputs = kept(consumer.outputs)
        _, variables = kept_variables(consumer, kept(consumer.axis), outputs)
        target: Any = model.get_submodule(consumer.module)
        if consumer.blocks > 1:
            return
        weight, rows = consumer.matrix(target.weight.detach())[0], torch.from_numpy(outputs)
        a, b = _columns(consumer, x), wide.pop(consumer.weight)
        new, shift = _solved(a, b, torch.from_numpy(variables), weight)
        module.weight.copy_(consumer.weight_of(new[rows][None], module.weight))
        if module.bias is not None:
            module.bias.copy_(target.bias[rows] + shift[rows])

    def measure(module: Any, args: Any) -> None:
        dims = [d for d in range(args[0].dim()) if d != 1]
        variance, mean = torch.var_mean(args[0], dim=dims)
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)

    with watch(thin, consumers, solve) as stack:
        for norm in norms_of(thin).values():
            stack.callback(norm.register_forward_pre_hook(measure).remove)
        forward(thin)
    return thin


def _columns(consumer: Consumer, x: Tensor) -> Tensor:
    count = consumer.laid_out(x)[..., 0].numel()
    return consumer.columns(x, picked(count, wanted(consumer))).contiguous()


def _solved(a: Tensor, b: Tensor, kept: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    a, missing = a - mean_a, b - mean_b
    missing[kept] -= a
    outer = torch.einsum("olt,omt->lm", weight, weight).double()
    split = max(a.shape[1] - a.shape[1] // 4, 1)
    grams, crosses = [], []
    for span in (slice(0, split), slice(split, None)):
        part = a[:, span]
        grams.append((part @ part.T).double() / max(1, part.shape[1]))
        crosses.append((part @ missing[:, span].T).double() / max(1, part.shape[1]))
    values, vectors = torch.linalg.eigh(grams[0])
    seen, held = vectors.T @ crosses[0], vectors.T @ grams[1] @ vectors
    against = vectors.T @ crosses[1]
    scale = float(grams[0].diagonal().mean())
    best, damping = 0.0, math.inf
    for share in DAMPINGS:
        change = seen / (values + share * scale)[:, None]
        error = float(((change @ outer) * (held @ change - 2.0 * against)).sum())
        if error < best:
            best, damping = error, share
    found = torch.zeros(len(kept), len(b), dtype=torch.float64)
    if damping < math.inf:
        share = split / a.shape[1]
        gram = grams[0] * share + grams[1] * (1 - share)
        gram.diagonal().add_(damping * scale)
        cross = crosses[0] * share + crosses[1] * (1 - share)
        found = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
    found[torch.arange(len(kept)), kept] += 1.0
    change = found.T.float()
    return torch.einsum("olt,lk->okt", weight, change), weight.sum(2) @ (mean_b - change @ mean_a)[:, 0]
