"""A traced network's structure after a cut: what is left of its axes and tensors, and the thin copy.

A network is described by its :class:`ChannelGraph`, a cut by the units each group keeps; both are data, so
that the same class serves pruning and a trial on tensors without data. Nothing but the copy reads a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray, Shape
from slimfast.errors import ArgumentError
from slimfast.graph.channel_graph import Attribute, Axis, ChannelGraph, ChannelGroup, Operation, alive_units
from slimfast.graph.cutting.bare_norms import bare_norms
from slimfast.graph.cutting.hooked_weights import make_hooked
from slimfast.graph.cutting.patches import Patch, apply_patches, patches_of
from slimfast.graph.cutting.recurrent_layers import flatten_recurrent
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network


@dataclass(frozen=True, eq=False)
class Cut:
    """A graph cut to the units that ``keeps`` has for each group; a group it does not name keeps all.

    What follows from the two is worked out when it is asked for, once. Raises ``ValueError`` unless every key
    is a group and every value its sorted, distinct units, at least one.
    """

    graph: ChannelGraph
    keeps: Mapping[str, IntArray]

    def __post_init__(self) -> None:
        _check_keeps(self.graph, self.keeps)

    @cached_property
    def kept_indices(self) -> Callable[[Axis], IntArray]:
        """The indices of an axis that are left, sorted."""
        masks = {group: alive_units(keep) for group, keep in self.keeps.items()}
        return cache(lambda axis: axis.alive(masks))

    def kept_length(self, axis: Axis) -> int:
        """Count the indices of an axis that are left."""
        return len(self.kept_indices(axis))

    def shapes_of(self, operation: Operation) -> tuple[Shape, ...]:
        """Predict the shapes of what an operation makes."""
        return tuple(tuple(map(self.kept_length, axes)) for axes in operation.outputs)

    def only(self, groups: Collection[str]) -> Cut:
        """Cut none but these groups."""
        return Cut(self.graph, {name: keep for name, keep in self.keeps.items() if name in groups})

    def without(self, groups: Iterable[str]) -> Cut:
        """Leave these groups whole."""
        return self.only(self.keeps.keys() - set(groups))

    @cached_property
    def narrowed_groups(self) -> tuple[ChannelGroup, ...]:
        """The groups that lose units."""
        keeps = self.keeps
        return tuple(group for group in self.graph if len(keeps.get(group.name, range(group.n))) < group.n)

    @cached_property
    def tensor_cuts(self) -> Mapping[str, Mapping[int, IntArray]]:
        """The kept indices of each dim that changes, of each tensor that changes."""
        cuts: dict[str, dict[int, IntArray]] = {}
        for tensor, axes in self.graph.axes.items():
            for dim, axis in enumerate(axes):
                if axis.places and self.kept_length(axis) < axis.length:
                    cuts.setdefault(tensor, {})[dim] = self.kept_indices(axis)
        return cuts

    @cached_property
    def thin_shapes(self) -> Mapping[str, Shape]:
        """The shape of each tensor that changes."""
        return {name: tuple(map(self.kept_length, self.graph.axes[name])) for name in self.tensor_cuts}

    def attribute_patches(
        self, network: Network, attributes: Iterable[Attribute] | None = None
    ) -> tuple[Patch, ...]:
        """List the Python attributes of a network that change, in order of module and name.

        Those of PyTorch's own layers follow from the shapes of their tensors, where they have none from what
        they norm, and ``attributes`` (the graph's unless given) from their axes.
        """
        given = (self.graph.attributes or ()) if attributes is None else attributes
        following = [*bare_norms(network, self.graph), *given]
        lengths = [(attribute, self.kept_length(attribute.axis)) for attribute in following]
        return patches_of(network, self.thin_shapes, lengths)

    def thin_tensors(self, network: Network) -> dict[str, Tensor]:
        """Slice the tensors of a network that change."""
        return {
            # without data there is nothing to select
            name: network.tensors[name].new_empty(self.thin_shapes[name])
            if network.tensors[name].is_meta
            else select_indices(network.tensors[name].detach(), dims)
            for name, dims in self.tensor_cuts.items()
        }

    def thin_copy(
        self,
        network: Network,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        patches: Iterable[Patch] | None = None,
        share: bool = False,
    ) -> nn.Module:
        """Copy a network as it is after the cut.

        ``tensors`` and ``patches``: its :meth:`thin_tensors` and :meth:`attribute_patches` unless given.
        ``share``: the tensors that do not change are the network's own, not copies.
        """
        thin = copy_network(network, self.thin_tensors(network) if tensors is None else tensors, share=share)
        apply_patches(thin, self.attribute_patches(network) if patches is None else patches)
        if not share:
            make_hooked(thin)
            flatten_recurrent(thin)
        return thin


def thin_shape(shape: Shape, dims: Mapping[int, IntArray]) -> Shape:
    """Replace the lengths of the cut dims in a shape."""
    return tuple(len(dims[dim]) if dim in dims else length for dim, length in enumerate(shape))


def select_indices(tensor: Tensor, dims: Mapping[int, IntArray]) -> Tensor:
    """Slice a tensor at these indices of its dims, by plain indexing: what the gather kernels must equal."""
    for dim, index in dims.items():
        tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return tensor


def _check_keeps(graph: ChannelGraph, keeps: Mapping[str, IntArray]) -> None:
    sizes = {group.name: group.n for group in graph}
    for name, keep in keeps.items():
        if name not in sizes:
            raise ArgumentError(f"keeps: the network has no group {name!r}")
        units = np.asarray(keep)
        if units.ndim != 1 or units.size == 0 or not np.issubdtype(units.dtype, np.integer):
            raise ArgumentError(f"keeps: expected at least one unit, got {keep!r} ({name})")
        if units[0] < 0 or units[-1] >= sizes[name] or bool((np.diff(units) <= 0).any()):
            raise ArgumentError(
                f"keeps: expected sorted, distinct units in 0..{sizes[name] - 1}, "
                f"got {units.size} in {units.min()}..{units.max()} ({name})"
            )
