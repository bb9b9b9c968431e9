"""Weights as the layers of a traced network compute with them: masked, normed, silenced by a batch norm."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.computed_weights import ComputedWeight
from slimfast.storage.weights import Source, TensorInfo, Weights, open_weights


def open_effective(source: Source, graph: ChannelGraph | None) -> Weights:
    """Open the tensors of a source as the layers of a graph compute with them.

    The graph's computed weights are among them, and what is multiplied by 0 behind a weight, by a batch norm
    or a depthwise filter, is 0 in the weight. All else, and everything without a graph, is as
    :func:`open_weights` has it. Raises :class:`SlimfastError` as that does, and naming a tensor that a weight
    is made of and that is missing.
    """
    weights = open_weights(source)
    if graph is None or not (graph.computed or graph.behind):
        return weights
    if isinstance(source, nn.Module) and graph.computed:
        weights = _with_buffers(weights, source)
    held = _Held(weights, graph)
    effective = graph.effective(held)
    infos = {name: _info(made, held) for name, made in graph.computed.items()}
    silenced = [name for name in graph.behind if effective.silenced(name) is not None]
    infos |= {name: held.info(name) for name in silenced if name not in infos}
    return replace(
        weights,
        infos={**weights.infos, **infos},
        load=lambda name: effective[name] if name in infos else weights.load(name),
        # what lies in a file under a silenced weight's name is not what is measured
        extents={name: extent for name, extent in weights.extents.items() if name not in infos},
    )


def _with_buffers(weights: Weights, model: nn.Module) -> Weights:
    """Add a module's buffers, which masks and the vectors of spectral norms are."""
    buffers = {name: buffer.detach() for name, buffer in model.named_buffers(remove_duplicate=False)}
    infos = {
        name: TensorInfo(tuple(b.shape), b.dtype if b.is_floating_point() else None, b.device)
        for name, b in buffers.items()
    }
    return replace(
        weights,
        infos={**infos, **weights.infos},
        load=lambda name: buffers[name] if name in buffers else weights.load(name),
    )


def _info(made: ComputedWeight, held: _Held) -> TensorInfo:
    """Say what is known of a computed weight before it is computed."""
    sources = [held.info(name) for name in made.sources.values()]
    dtypes = [source.dtype for source in sources if source.dtype is not None]
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else None
    return TensorInfo(made.shape, dtype, sources[0].device)


@dataclass(frozen=True, slots=True, eq=False)
class _Held(Mapping[str, Tensor]):
    """The tensors of a source by the names that a graph has for them."""

    weights: Weights
    graph: ChannelGraph

    def stored(self, name: str) -> str:
        """Find the name under which the source holds a tensor: files keep only one name of a tied one."""
        return self.graph.stored_name(name, self.weights.infos)

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor."""
        return self.weights.info(self.stored(name))

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored(name)
        self.weights.info(stored)
        return self.weights.load(stored)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.stored(name) in self.weights.infos

    def __iter__(self) -> Iterator[str]:
        yield from self.weights.infos

    def __len__(self) -> int:
        return len(self.weights.infos)
