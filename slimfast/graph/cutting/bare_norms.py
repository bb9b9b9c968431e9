"""Norms without a tensor of their own, whose number of channels is that of what they norm."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph
from slimfast.graph.cutting.width_scopes import axis_key
from slimfast.graph.recording.network import Network

_NORMS = ((nn.GroupNorm, "num_channels"), (nn.modules.batchnorm._NormBase, "num_features"))


def bare_norms(network: Network, graph: ChannelGraph) -> Iterator[Attribute]:
    """Find the numbers of channels of PyTorch's norms without tensors, each with the axis that it follows."""
    lengths: dict[str, tuple[str, int]] = {}
    for path, module in network.modules.items():
        for kind, name in _NORMS:
            if isinstance(module, kind) and _is_bare(module):
                lengths[path] = name, getattr(module, name)
    found: dict[str, dict[object, Axis]] = {path: {} for path in lengths}
    for operation in graph.operations if lengths else ():
        if operation.module in lengths:
            length = lengths[operation.module][1]
            # the channels are the first or second axis, with or without one of samples
            axes = [axis for axes in operation.outputs for axis in axes[:2] if axis.length == length]
            found[operation.module].update((axis_key(axis), axis) for axis in axes if axis.places)
    for path, normed in found.items():
        if len(normed) == 1:
            yield Attribute(path, lengths[path][0], None, next(iter(normed.values())))


def _is_bare(module: nn.Module) -> bool:
    """Say whether a module has neither a parameter nor a buffer."""
    return all(tensor is None for tensor in (*module._parameters.values(), *module._buffers.values()))
