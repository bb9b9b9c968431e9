"""Who reads a channel group: the linear and convolution layers that sum over its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray
from slimfast.graph.channel_graph import Axis, ChannelGraph

# Beyond this length the positions of a flattened unit are samples of one variable, not variables of their
# own.
LONGEST = 8192
# Bytes of float64 that the moments of all pairs of what one layer reads may take, where nobody allows more.
LARGEST = 2 << 30

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A layer that sums over an axis which a cut may shorten.

    ``weight`` is the name of its weight, whose dim ``dim`` it sums over, ``axis`` that dim's axis; ``taps``
    is the number of spatial dims. A convolution in ``blocks`` groups reads ``blocks`` such axes one after the
    other; ``outputs`` is its weight's other axis. ``run``: that many neighbouring indices, a flattened unit,
    count as samples of one variable.
    """

    weight: str
    module: str
    dim: int
    axis: Axis
    outputs: Axis
    taps: int = 0
    blocks: int = 1
    run: int = 1

    @property
    def length(self) -> int:
        """The number L of variables it reads."""
        return self.axis.length * self.blocks // self.run

    def laid_out(self, x: Tensor) -> Tensor:
        """View the layer's input with its variables last and a position in each of the other dims."""
        last = x.dim() - self.taps - 1
        if self.taps and last == 0:
            x, last = x.unsqueeze(0), 1
        if self.run > 1:
            x, last = x.reshape(*x.shape[:-1], -1, self.run), x.dim() - 1
        return x.movedim(last, -1)

    def columns(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Lay the layer's input out as (L, positions), the positions of one sample side by side.

        ``index``: only these positions, in rising order.
        """
        view = self.laid_out(x)
        if index is None:
            return view.movedim(-1, 0).reshape(view.shape[-1], -1)
        if view.is_contiguous() or view.dim() < 3:
            return view.reshape(-1, view.shape[-1]).index_select(0, index).T
        # Of a convolution's input the positions of one sample lie side by side already.
        size = view[0].numel() // view.shape[-1]
        bounds = torch.arange(1, len(view), device=index.device) * size
        each = index.tensor_split(torch.searchsorted(index, bounds).cpu())
        parts = [
            sample.movedim(-1, 0).reshape(view.shape[-1], -1).index_select(1, own - place * size)
            for place, (sample, own) in enumerate(zip(view, each, strict=True))
            if len(own)
        ]
        return torch.cat(parts, 1) if parts else view.new_empty(view.shape[-1], 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """Lay the weight out as (blocks, outputs of a block, variables of a block, taps and run)."""
        w = weight.movedim(self.dim, 1)
        w = w.reshape(self.blocks, w.shape[0] // self.blocks, w.shape[1] // self.run, -1)
        return w

    def weight_of(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Lay a matrix of :meth:`matrix` out as a weight with the taps of ``like``."""
        taps = like.movedim(self.dim, 1).shape[2:]
        return matrix.reshape(-1, matrix.shape[-2] * self.run, *taps).movedim(1, self.dim)

    def unit_index(self, units: IntArray, n: int) -> IntArray:
        """Find the variables that belong to each unit of a group, (n, positions); ``units`` as in its
        member.
        """
        tiled = np.tile(units[:: self.run], self.blocks)
        order = np.argsort(tiled, kind="stable")[np.count_nonzero(tiled < 0) :]
        index: IntArray = order.reshape(n, -1).astype(np.int64)
        return index


def consumers_of(model: nn.Module, graph: ChannelGraph) -> tuple[list[Consumer], dict[str, str]]:
    """Find the layers that read the graph's groups, in the order they run, and why other weights are not read
    so.
    """
    modules = dict(model.named_modules())
    first_run = {op.module: i for i, op in reversed(list(enumerate(graph.operations)))}
    consumers: list[Consumer] = []
    left: dict[str, str] = {}
    read: dict[str, set[int]] = {}
    for group in graph:
        for member in graph.consumers(group):
            read.setdefault(member.tensor, set()).add(member.dim)
    for name, dims in read.items():
        path, _, attribute = name.rpartition(".")
        consumer = _consumer(name, path, attribute, modules.get(path), graph, dims)
        if isinstance(consumer, str):
            left[name] = consumer
        else:
            consumers.append(consumer)
    return sorted(consumers, key=lambda consumer: first_run.get(consumer.module, len(first_run))), left


def with_moments(
    consumers: Sequence[Consumer], *, memory: int | None = None
) -> tuple[list[Consumer], dict[str, str]]:
    """Pick the layers whose moments are not too large to be worked with, and say why of the others.

    ``memory``: what the caller allows for activations; twice as much goes for one layer's moments, where that
    is more than ``LARGEST``.
    """
    most = max(LARGEST, 2 * (memory or 0))
    fitting, left = [], {}
    for consumer in consumers:
        size = 8 * consumer.length**2
        if size <= most:
            fitting.append(consumer)
            continue
        left[consumer.weight] = (
            f"{consumer.module} reads {consumer.length} variables, whose moments take {size / 1e9:.1f} GB, "
            f"more than {most / 1e9:.1f} GB"
        )
        if memory is not None:
            left[consumer.weight] += f"; memory={-(-size // 2)} allows it"
    return fitting, left


def _consumer(
    name: str,
    path: str,
    attribute: str,
    module: Any,
    graph: ChannelGraph,
    dims: set[int],
) -> Consumer | str:
    """Find the consumer of a weight, or the reason why there is none."""
    axes = graph.axes_of(name)
    where = f"{path} ({type(module).__name__})"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"{where} is recurrent: what it reads and what it says of the step before are one sum"
    if attribute != "weight" or module is None:
        return f"{where} is not known to be linear in it"
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        dim, taps, blocks = 1, 0, 1
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        dim, taps, blocks = 0, 0, 1
    elif isinstance(module, _CONVS) and _plain(module, _CONVS):
        dim, taps, blocks = 1, len(axes) - 2, module.groups
    elif isinstance(module, _TRANSPOSED) and _plain(module, _TRANSPOSED):
        dim, taps, blocks = 0, len(axes) - 2, 1
        if module.groups > 1:
            return f"{where} is a transposed convolution in groups"
    else:
        return f"{where} is not known to be linear in it"
    if dims != {dim}:
        return f"{where} does not sum over dim {sorted(dims)[0]}"
    axis, outputs, run = axes[dim], axes[1 - dim], 1
    if axis is None or outputs is None:
        return f"{where} has a weight whose axes are not those of one parameter"
    if axis.length > LONGEST and blocks == 1:
        run = _run(axis)
    return Consumer(name, path, dim, axis, outputs, taps, blocks, run)


def _plain(module: nn.Module, bases: Sequence[type[nn.Module]]) -> bool:
    """Whether a convolution runs PyTorch's own forward, and not one that changes its weight first."""
    return any(
        type(module).forward is base.forward
        and getattr(type(module), "_conv_forward", None) is getattr(base, "_conv_forward", None)
        for base in bases
    )


def _run(axis: Axis) -> int:
    """Count the neighbouring indices that each unit has on a flattened axis; 1 where it is no such axis."""
    if len(axis.places) != 1:
        return 1
    units = axis.parts[0][1]
    if units.min() < 0 or axis.length % (int(units.max()) + 1):
        return 1
    run = axis.length // (int(units.max()) + 1)
    return run if np.array_equal(units, np.repeat(np.arange(axis.length // run), run)) else 1


def kept_variables(
    consumer: Consumer, kept_axis: IntArray, kept_outputs: IntArray
) -> tuple[IntArray, IntArray]:
    """Find the blocks that survive a cut, and the surviving variables of each block.

    ``kept_axis`` and ``kept_outputs`` are the surviving indices of the consumer's two axes.
    """
    per_block = consumer.outputs.length // consumer.blocks
    blocks: IntArray = np.unique(kept_outputs // per_block) if consumer.blocks > 1 else np.zeros(1, np.int64)
    variables: IntArray = kept_axis if consumer.run == 1 else np.unique(kept_axis // consumer.run)
    return blocks, variables


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Find the tensor that a linear or convolution layer was called with."""
    x = args[0] if args else kwargs.get("input", kwargs.get("x"))
    return x if isinstance(x, Tensor) else None


def to_device(value: Any, device: torch.device) -> Any:
    """Move a tensor to a device, and leave anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value
