"""Reading channel graphs in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from slimfast.graph import ChannelGraph, ChannelGroup, trace_channels


def members(group: ChannelGroup) -> dict[tuple[str, int], list[int]]:
    """(tensor, dim) -> the unit of each index (-1: none)."""
    found: dict[tuple[str, int], list[int]] = {}
    for member in group.members:
        assert (member.tensor, member.dim) not in found
        found[member.tensor, member.dim] = member.units.tolist()
    return found


def roles(group: ChannelGroup) -> dict[tuple[str, int], str]:
    return {(member.tensor, member.dim): member.role for member in group.members}


def summary(graph: ChannelGraph) -> dict[str, tuple[str, int]]:
    """Group name -> (kind, units)."""
    return {group.name: (group.kind, group.n) for group in graph}


def reasons(graph: ChannelGraph) -> dict[tuple[str, int], set[str]]:
    """(tensor, dim) -> why it is left alone."""
    found: dict[tuple[str, int], set[str]] = {}
    for entry in graph.frozen:
        found.setdefault((entry.tensor, entry.dim), set()).add(entry.reason)
    return found


def prunable(graph: ChannelGraph) -> float:
    """The share of parameter elements that belong to some group."""
    sizes = {name: [axis.length for axis in graph.axes[name]] for name in graph.parameters}
    touched = {name for name in graph.parameters if any(axis.parts for axis in graph.axes[name])}
    count = {name: int(np.prod(size)) for name, size in sizes.items()}
    return sum(count[name] for name in touched) / sum(count.values())


def trace_example(model: nn.Module, example: Any, **keywords: Any) -> ChannelGraph:
    """What the operations allow, before any trial cut."""
    return trace_channels(model, example, settle=False, **keywords)


def trace(model: nn.Module, *shape: int, **keywords: Any) -> ChannelGraph:
    """What the operations allow, before any trial cut, of one float input of this shape."""
    return trace_example(model, torch.zeros(shape), **keywords)


def units(n: int, repeat: int = 1) -> list[int]:
    """0, 0, ..., 1, 1, ...: each of n units ``repeat`` times in a row."""
    return [unit for unit in range(n) for _ in range(repeat)]


def random_keeps(graph: ChannelGraph, seed: int, *, exact: bool = True) -> Mapping[str, Any]:
    """For each group a random kept part, at least one unit and never all; inexact groups only on request."""
    generator = np.random.default_rng(seed)
    keeps = {}
    for group in graph:
        if exact and group.inexact is not None:
            continue
        width = int(generator.integers(1, group.n))
        keeps[group.name] = np.sort(generator.choice(group.n, width, replace=False)).astype(np.int64)
    return keeps
