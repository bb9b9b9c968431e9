"""Repair from activations in the plainest form: all samples in one batch, float64, one layer after another.

What :mod:`slimfast.pruning.repair.activations` does with moments, slice by slice, it does with the samples
themselves, and the damping is tried in the eigenbasis of what the thin layer reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.calibration.consumers import Consumer, consumers_of, input_of, kept_variables
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.pruning.repair.least_squares import DAMPINGS
from slimfast.pruning.repair.report import Fit


@torch.no_grad()
def repair_at_once(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> dict[str, Fit]:
    """Repair ``thin`` in place on one batch of everything; the fits of its layers."""
    model.eval()
    thin.eval()
    consumers = consumers_of(model, graph)[0]
    kept = Cut(graph, keeps).kept_indices
    wide, calls, followed = _read(model, consumers, inputs)
    consumers = [consumer for consumer in consumers if calls.get(consumer.weight) == 1]
    fits: dict[str, Fit] = {}
    hooks = []
    for consumer in consumers:
        layer = functools.partial(_solve_layer, model, consumer, wide[consumer.weight], kept, followed, fits)
        module = thin.get_submodule(consumer.module)
        hooks.append(module.register_forward_pre_hook(layer, with_kwargs=True))
    hooks += [norm.register_forward_pre_hook(_measure) for norm in _norms(thin)]
    thin(**inputs)
    for hook in hooks:
        hook.remove()
    return fits


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _read(model: nn.Module, consumers: list[Consumer], inputs: Mapping[str, Any]) -> Any:
    wide: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    followed: set[str] = set()
    last: list[Any] = []

    def before(consumer: Consumer, module: Any, args: Any, kwargs: Any) -> None:
        calls[consumer.weight] = calls.get(consumer.weight, 0) + 1
        x = input_of(args, kwargs)
        assert x is not None
        wide[consumer.weight] = _picked(consumer, consumer.columns(x)).double()

    def after(consumer: Consumer, module: Any, args: Any, output: Any) -> None:
        last[:] = [consumer.weight, output]

    def norm(module: Any, args: Any) -> None:
        if last and args[0] is last[1]:
            followed.add(last[0])

    hooks = []
    for consumer in consumers:
        module = model.get_submodule(consumer.module)
        hooks.append(module.register_forward_pre_hook(functools.partial(before, consumer), with_kwargs=True))
        hooks.append(module.register_forward_hook(functools.partial(after, consumer)))
    hooks += [module.register_forward_pre_hook(norm) for module in _norms(model)]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return wide, calls, followed


def _picked(consumer: Consumer, columns: Tensor) -> Tensor:
    total, count = columns.shape[1], max(8192, 4 * consumer.length)
    if total <= count:
        return columns.clone()
    index = torch.randperm(total, generator=torch.Generator().manual_seed(total))[:count].sort().values
    return columns[:, index]


def _measure(module: Any, args: Any) -> None:
    x = args[0]
    variance, mean = torch.var_mean(x.double(), dim=[d for d in range(x.dim()) if d != 1])
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)


def _solve_layer(
    model: nn.Module, consumer: Consumer, wide: Tensor, kept: Any, followed: set[str], fits: dict[str, Fit],
    module: Any, args: Any, kwargs: Any,
) -> None:  # fmt: skip
    original: Any = model.get_submodule(consumer.module)
    outputs = kept(consumer.outputs)
    blocks, variables = kept_variables(consumer, kept(consumer.axis), outputs)
    assert len(blocks) == consumer.blocks == 1
    x = input_of(args, kwargs)
    assert x is not None
    a = _picked(consumer, consumer.columns(x)).double()
    weight = consumer.matrix(original.weight.double())[0]
    bias = getattr(original, "bias", None)
    centred = bias is not None or consumer.weight in followed
    new, shift, fits[consumer.weight] = solve(a, wide, torch.from_numpy(variables), weight, centred)
    rows = torch.from_numpy(outputs)
    module.weight.copy_(consumer.weight_of(new[rows][None], module.weight))
    if bias is not None:
        module.bias.copy_(bias.double()[rows] + shift[rows])


def solve(a: Tensor, b: Tensor, kept: Tensor, weight: Tensor, centred: bool) -> tuple[Tensor, Tensor, Fit]:
    """Solve for the weights of a thin layer from (k, s) and (L, s), the last quarter held out."""
    total = a.shape[1]
    plain = torch.zeros(len(b), len(a), dtype=a.dtype)
    plain[kept, torch.arange(len(a))] = 1.0
    mean_a, mean_b = (x.mean(1, keepdim=True) * float(centred) for x in (a, b))
    a, b = a - mean_a, b - mean_b
    rest = b - plain @ a
    outer = torch.einsum("olt,omt->lm", weight, weight)
    size = float((outer * (b @ b.T)).sum()) / total
    split = max(total - total // 4, 1)
    before = _error(outer, rest[:, split:])
    found, best = math.inf, before
    for damping in DAMPINGS:
        change = _change(a[:, :split], rest[:, :split], damping)
        error = _error(outer, rest[:, split:] - change @ a[:, split:])
        if error < best:
            found, best = damping, error
    c = plain + _change(a, rest, found)
    shift = weight.sum(2) @ (mean_b - c @ mean_a)[:, 0]
    return torch.einsum("olt,lk->okt", weight, c), shift, Fit(found, before / size, best / size)


def _error(outer: Tensor, rest: Tensor) -> float:
    return float((outer * (rest @ rest.T)).sum()) / max(1, rest.shape[1])


def _change(a: Tensor, rest: Tensor, damping: float) -> Tensor:
    values, vectors = torch.linalg.eigh(a @ a.T / a.shape[1])
    values = values.clamp_min(0.0)
    inverse = 1.0 / (values + damping * values.mean()) if damping < math.inf else torch.zeros_like(values)
    return (rest @ a.T / a.shape[1] @ vectors * inverse) @ vectors.T
