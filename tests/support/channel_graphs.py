"""Channel graphs written by hand, for tests that need no tracing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.graph import InputSpec
from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Member, Operation, Places


def units_of(n: int, repeat: int = 1) -> np.ndarray:
    """Unit ids of an axis in which each of n units has ``repeat`` indices in a row."""
    return np.repeat(np.arange(n, dtype=np.int64), repeat)


def chain(sizes: Sequence[int], *, inputs: int = 3, batch: int = 2) -> ChannelGraph:
    """Linear layers ``0``, ``1``, ... of these sizes on ``inputs`` features; all but the last can be cut."""
    groups = []
    axes: dict[str, tuple[Axis, ...]] = {}
    operations = []
    before = Axis(inputs)
    for i, size in enumerate(sizes):
        last = i == len(sizes) - 1
        after = Axis(size) if last else Axis.of(size, ((f"{i}", units_of(size)),))
        axes[f"{i}.weight"], axes[f"{i}.bias"] = (after, before), (after,)
        operations.append(Operation("aten.linear", f"{i}", ((Axis(batch), after),), (batch, after, before)))
        if not last:
            members = (
                Member(f"{i}.weight", 0, "producer", Places.of(units_of(size))),
                Member(f"{i}.bias", 0, "follower", Places.of(units_of(size))),
                Member(f"{i + 1}.weight", 1, "consumer", Places.of(units_of(size))),
            )
            groups.append(ChannelGroup(f"{i}", "channel", size, members))
        before = after
    return ChannelGraph(
        groups=tuple(groups),
        axes=axes,
        parameters=frozenset(axes),
        operations=tuple(operations),
        frozen=(),
        inputs=InputSpec.of(torch.zeros(batch, inputs)),
    )


def chain_weights(sizes: Sequence[int], *, inputs: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Weights and biases for :func:`chain`."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for i, (size, before) in enumerate(zip(sizes, [inputs, *sizes], strict=False)):
        weights[f"{i}.weight"] = torch.randn(size, before, generator=generator)
        weights[f"{i}.bias"] = torch.zeros(size)
    return weights


def joint(
    members: Sequence[tuple[str, tuple[int, ...], int, np.ndarray]], *, kind: str = "residual"
) -> ChannelGraph:
    """One group ``g`` whose producers are these (tensor, shape, dim, units)."""
    n = 1 + max(int(units.max()) for _, _, _, units in members)
    axes = {
        name: tuple(
            Axis.of(size, (("g", units),)) if i == dim else Axis(size) for i, size in enumerate(shape)
        )
        for name, shape, dim, units in members
    }
    group = ChannelGroup(
        "g", kind, n, tuple(Member(name, dim, "producer", Places.of(u)) for name, _, dim, u in members)
    )
    return ChannelGraph((group,), axes, frozenset(axes), (), (), InputSpec.of(torch.zeros(1)))


def hidden_graph() -> ChannelGraph:
    """Linear(3, 4) to Linear(4, 2), by hand: one group of four hidden units."""
    units, three, two, batch = np.arange(4), Axis(3), Axis(2), Axis(5)
    hidden = Axis.of(4, (("hidden", units),))
    places = Places.of(units)
    members = (Member("0.weight", 0, "producer", places), Member("0.bias", 0, "follower", places))
    group = ChannelGroup("hidden", "channel", 4, (*members, Member("1.weight", 1, "consumer", places)))
    linear = "aten.linear"
    return ChannelGraph(
        groups=(group,),
        axes={"0.weight": (hidden, three), "0.bias": (hidden,), "1.weight": (two, hidden), "1.bias": (two,)},
        parameters=frozenset({"0.weight", "0.bias", "1.weight", "1.bias"}),
        operations=(Operation(linear, "0", ((batch, hidden),)), Operation(linear, "1", ((batch, two),))),
        frozen=(),
        inputs=InputSpec.of(torch.zeros(5, 3)),
        attributes=(),
    )


def hidden_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
