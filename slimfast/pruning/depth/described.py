"""The manifest of a network after layers were dropped from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.depth.shorter import Dropped, Names
from slimfast.pruning.manifests import Manifest

T = TypeVar("T")


def without_layers(
    described: Manifest, dropped: Sequence[Dropped], short: nn.Module, moved: Sequence[str] = ()
) -> Manifest:
    """Describe ``short``, which is the network of a manifest after more layers were dropped from it.

    ``dropped`` are named as in that network, and ``moved``, the tensors that were solved for since, as in
    ``short``.
    """
    names, before = Names(dropped), Names(described.dropped)

    def left(named: Mapping[str, T]) -> dict[str, T]:
        renamed = ((names.shorter(name), value) for name, value in named.items())
        return {name: value for name, value in renamed if name is not None}

    held = named_tensors(short)
    patches = ((names.shorter(p.module) if p.module else "", p) for p in described.patches)
    changes = left(described.moved)
    return Manifest(
        {name: shape for name, shape in left(described.shapes_before).items() if name in held},
        left(described.keeps),
        tuple(replace(p, module=module) for module, p in patches if module is not None),
        left(described.widths),
        changes | {name: (*changes.get(name, ()), "repair") for name in moved},
        (*described.dropped, *(replace(one, name=before.deep(one.name)) for one in dropped)),
    )
