"""Cutting a traced network's structure: which indices of which tensor survive, which Python constants change.

Nothing here reads a weight. A network is described by its :class:`ChannelGraph`, a cut by the units each
group keeps; both are data, so that the same functions serve pruning, loading and a trial on meta tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Attribute, ChannelGraph, IntArray
from slimfast.graph.cutting.prediction import Mismatch, Shape, check_thin, predicted_shapes, survivors
from slimfast.graph.recording.network import Network

__all__ = [
    "Mismatch",
    "Patch",
    "Shape",
    "apply_patches",
    "check_keeps",
    "check_thin",
    "cut",
    "patches",
    "patches_of",
    "plain",
    "predicted_shapes",
    "read_attribute",
    "select_indices",
    "standard_attributes",
    "survivors",
    "thin_shape",
]

# What a patched attribute may hold: an int, or a tuple or list of ints among other plain values.
Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Patch:
    """``attribute`` of ``module`` held ``before`` and must hold ``after``: ints, or tuples where it is a
    sequence.

    ``attribute`` is ``config.name`` for one of an object that the module holds; that object is then copied
    first, because modules share it.
    """

    module: str
    attribute: str
    before: Value
    after: Value


def check_keeps(graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> None:
    """``ValueError`` unless every key is a group and every value its sorted, distinct units, at least one."""
    sizes = {group.name: group.n for group in graph}
    for name, keep in keeps.items():
        if name not in sizes:
            raise ValueError(f"keeps: the network has no group {name!r}")
        units = np.asarray(keep)
        if units.ndim != 1 or units.size == 0 or not np.issubdtype(units.dtype, np.integer):
            raise ValueError(f"keeps: expected at least one unit, got {keep!r} ({name})")
        if units[0] < 0 or units[-1] >= sizes[name] or bool((np.diff(units) <= 0).any()):
            raise ValueError(
                f"keeps: expected sorted, distinct units in 0..{sizes[name] - 1}, "
                f"got {units.size} in {units.min()}..{units.max()} ({name})"
            )


def cut(graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> dict[str, dict[int, IntArray]]:
    """The kept indices of each dim of each tensor that a cut changes, tensors under the first of their names.

    A group that ``keeps`` does not name keeps all of its units. Raises ``ValueError`` as :func:`check_keeps`
    does.
    """
    check_keeps(graph, keeps)
    kept = survivors(keeps)
    tensors: dict[str, dict[int, IntArray]] = {}
    for tensor, axes in graph.axes.items():
        dims = {dim: kept(axis) for dim, axis in enumerate(axes) if axis.parts}
        changed = {dim: index for dim, index in dims.items() if len(index) < axes[dim].length}
        if changed:
            tensors[graph.tied.get(tensor, tensor)] = changed
    return tensors


def thin_shape(shape: Shape, dims: Mapping[int, IntArray]) -> Shape:
    """``shape`` with the lengths of the cut dims."""
    return tuple(len(dims[dim]) if dim in dims else length for dim, length in enumerate(shape))


def select_indices(tensor: Tensor, dims: Mapping[int, IntArray]) -> Tensor:
    """The slice of a tensor at these indices of its dims, by plain indexing: what the gather kernels must
    equal.
    """
    for dim, index in dims.items():
        tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return tensor


def patches(network: Network, graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> tuple[Patch, ...]:
    """The Python attributes of a network that a cut changes, in order of module and name."""
    kept = survivors(keeps)
    lengths = [(attribute, len(kept(attribute.axis))) for attribute in graph.attributes or ()]
    return patches_of(network, cut(graph, keeps), lengths)


def patches_of(
    network: Network, cuts: Mapping[str, Mapping[int, IntArray]], lengths: Iterable[tuple[Attribute, int]]
) -> tuple[Patch, ...]:
    """The patches that a cut of these tensors and these attribute lengths call for, in order of module and
    name.

    The attributes of PyTorch's own layers follow from the shapes of their thin tensors.
    """
    values: dict[tuple[str, str], list[Value]] = {}
    for attribute, length in lengths:
        _set(values, network.modules[attribute.module], attribute, length)
    for prefix, shapes in _thin_shapes_by_module(network, cuts).items():
        module = network.modules[prefix]
        groups = values.get((prefix, "groups"), [getattr(module, "groups", 1)])[-1]
        for name, value in standard_attributes(module, shapes, groups).items():
            values[prefix, name] = [read_attribute(module, name), value]
    return tuple(
        Patch(module, name, before, after)
        for (module, name), (before, after) in sorted(values.items())
        if before != after
    )


def standard_attributes(module: nn.Module, shapes: Mapping[str, Shape], groups: int = 1) -> dict[str, Value]:
    """What the attributes of one of PyTorch's own layers must be for tensors of these shapes."""
    weight = shapes.get("weight", ())
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and weight:
        return {"in_channels": weight[0], "out_channels": weight[1] * groups}
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        return {"out_channels": weight[0], "in_channels": weight[1] * groups}
    if isinstance(module, nn.Linear) and weight:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.Bilinear) and weight:
        return {"out_features": weight[0], "in1_features": weight[1], "in2_features": weight[2]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and weight:
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": (weight or shapes["running_mean"])[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight:
        return {"normalized_shape": weight}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.PReLU) and weight:
        return {"num_parameters": weight[0]}
    return {}


def apply_patches(model: nn.Module, patches: Iterable[Patch]) -> None:
    """Set the attributes of ``model`` in place; :class:`SlimfastError` where one does not hold its
    ``before``.
    """
    for patch in patches:
        module = model.get_submodule(patch.module)
        found = read_attribute(module, patch.attribute)
        if found != patch.before:
            where = patch.module or type(model).__name__
            raise SlimfastError(f"{where}: expected {patch.attribute} = {patch.before}, got {found}")
        _write_attribute(module, patch.attribute, patch.after)


def read_attribute(module: nn.Module, name: str) -> Value:
    """The value of ``name`` or ``holder.name``, sequences as tuples; None where there is none."""
    owner: Any = module
    *holders, last = name.split(".")
    for holder in holders:
        owner = getattr(owner, holder, None)
    return plain(getattr(owner, last, None))


def plain(value: Any) -> Value:
    """A value with its lists and ``torch.Size`` as tuples, as it is compared and written to JSON."""
    return tuple(plain(item) for item in value) if isinstance(value, (tuple, list)) else value


def _write_attribute(module: nn.Module, name: str, value: Value) -> None:
    owner: Any = module
    *holders, last = name.split(".")
    for holder in holders:
        alone = copy.copy(getattr(owner, holder))
        setattr(owner, holder, alone)
        owner = alone
    kind = type(getattr(owner, last))
    setattr(owner, last, value if kind is int else kind(value))


def _set(
    values: dict[tuple[str, str], list[Value]], module: nn.Module, attribute: Attribute, length: int
) -> None:
    """Note that ``attribute`` becomes ``length``: [value before, value after] of it, whole where it is a
    tuple.
    """
    key = (attribute.module, attribute.name)
    if key not in values:
        before = read_attribute(module, attribute.name)
        values[key] = [before, before]
    if attribute.index is None:
        values[key][1] = length
    else:
        after = list(values[key][1])
        after[attribute.index] = length
        values[key][1] = tuple(after)


def _thin_shapes_by_module(
    network: Network, cuts: Mapping[str, Mapping[int, IntArray]]
) -> dict[str, dict[str, Shape]]:
    """Module path -> name of each of its own cut tensors -> thin shape."""
    first = {id(tensor): name for name, tensor in network.tensors.items() if name in cuts}
    found: dict[str, dict[str, Shape]] = {}
    for prefix, module in network.modules.items():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) in first:
                dims = cuts[first[id(tensor)]]
                found.setdefault(prefix, {})[name] = thin_shape(tuple(tensor.shape), dims)
    return found
