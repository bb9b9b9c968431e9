"""Attention heads without data: how the channels that heads give out vary together, from their weights alone.

A head gives out its values under its attention pattern. For inputs that are white, channels i of head h and j
of head g have the covariance (v_hi . v_gj) c_hg: how alike the weights of their values are, and how alike the
heads' patterns. Two patterns are compared by the forms that make them, M_h = Q_h' K_h, which do not depend on
the basis inside a head: c_hg = <M_h, M_g> / (|M_h| |M_g|) with <M_h, M_g> = tr(Q_h Q_g' K_g K_h').
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.forward import first_sample, run, running, watched
from slimfast.graph.channel_graph import Axis, ChannelGraph
from slimfast.graph.recording.inputs import arguments


def head_covariances(
    model: nn.Module, graph: ChannelGraph, found: Sequence[Consumer], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor | str]:
    """Compute the covariance of what each layer behind attention heads reads, by the layer's weight.

    It is (L, L) float64; in its place stands the reason where its heads' weights do not say.
    """
    kinds = {group.name: group.kind for group in graph}
    reads = [r for r in found if any(kinds.get(name) == "head" for name in r.axis.groups)]
    makers = {consumer.weight: _makers(consumer, graph, tensors) for consumer in reads}
    values = _values(model, graph, reads, makers) if reads else {}
    covariances: dict[str, Tensor | str] = {}
    for consumer in reads:
        three = makers[consumer.weight]
        if len(three) != 3:
            covariances[consumer.weight] = (
                f"the heads of {consumer.module} have no query, key and value of one shape"
            )
        elif consumer.weight not in values:
            covariances[consumer.weight] = f"none of {', '.join(name for name, _ in three)} makes the values"
        else:
            heads = next(units for name, units in consumer.axis.parts if kinds[name] == "head")
            rest = [rows for i, (_, rows) in enumerate(three) if i != values[consumer.weight]]
            alike = _alike(rest[0], rest[1], heads)
            value = three[values[consumer.weight]][1]
            index = torch.from_numpy(heads)
            covariances[consumer.weight] = value @ value.T * alike[index][:, index]
    return covariances


def _makers(
    consumer: Consumer, graph: ChannelGraph, tensors: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    """Find the linear layers whose outputs are laid out as what the consumer reads.

    Each is (module, rows (L, d) float64 on the CPU); a fused one counts once for each part.
    """
    names = set(consumer.axis.groups)
    found = []
    for member in dict.fromkeys(
        (m.tensor, m.dim) for g in graph if g.name in names for m in graph.producers(g)
    ):
        weight, axis = tensors[member[0]].detach(), graph.axes_of(member[0])[member[1]]
        if axis is None or weight.dim() != 2 or axis.length % consumer.length:
            continue
        rows = weight.movedim(member[1], 0).double().cpu()
        for start in range(0, axis.length, consumer.length):
            if _same(axis, consumer.axis, start):
                found.append((member[0].rpartition(".")[0], rows[start : start + consumer.length]))
    return found


def _same(axis: Axis, other: Axis, start: int) -> bool:
    """Say whether indices of ``axis`` from ``start`` on belong to the units that those of ``other`` do."""
    ours = {name: units[start : start + other.length] for name, units in axis.parts}
    theirs = dict(other.parts)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _values(
    model: nn.Module,
    graph: ChannelGraph,
    reads: Sequence[Consumer],
    makers: Mapping[str, Sequence[tuple[str, Tensor]]],
) -> dict[str, int]:
    """Find which of each consumer's makers is the values: the one without which it reads zeros alone."""
    found: dict[str, int] = {}
    with running(model) as (network, device):
        args = first_sample([arguments_of(graph, device)])
        for place in range(3):
            silent: set[str] = set()

            def see(silent: set[str], consumer: Consumer, x: Tensor) -> None:
                if not x.any():
                    silent.add(consumer.weight)

            with ExitStack() as stack:
                for consumer in reads:
                    _silence(stack, network, makers[consumer.weight], place, consumer.length)
                stack.enter_context(watched(network, reads, functools.partial(see, silent)))
                run(network, args, "repair")
            found |= dict.fromkeys(silent - found.keys(), place)
    return found


def arguments_of(graph: ChannelGraph, device: torch.device) -> Arguments:
    """Make up inputs to the graph's description."""
    args, kwargs = graph.inputs.example(device=device)
    return arguments(kwargs or args)


def _silence(
    stack: ExitStack, network: nn.Module, makers: Sequence[tuple[str, Tensor]], place: int, length: int
) -> None:
    """Zero the outputs of maker ``place``, of a fused layer its part, until ``stack`` is closed."""
    if place >= len(makers):
        return
    path = makers[place][0]
    start = length * [name for name, _ in makers[:place]].count(path)

    def zeros(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., start : start + length] = 0.0
        return output

    stack.callback(network.get_submodule(path).register_forward_hook(zeros).remove)


def _alike(one: Tensor, other: Tensor, heads: np.ndarray) -> Tensor:
    """Compute the cosines of the heads' bilinear forms, (H, H) float64, from the rows of queries and keys."""
    count = int(heads.max()) + 1
    q, k = (torch.stack([rows[torch.from_numpy(heads == h)] for h in range(count)]) for rows in (one, other))
    products = torch.einsum("hid,gjd->hgij", q, q) * torch.einsum("hid,gjd->hgij", k, k)
    inner = products.sum((2, 3))
    norms = inner.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return inner / norms / norms[:, None]
