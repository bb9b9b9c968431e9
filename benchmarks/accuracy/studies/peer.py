"""torch-pruning's own global group magnitude pruning (Fang et al., CVPR 2023, "DepGraph"), as a control."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.networks.resnet_cifar import BasicBlock
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError
from slimfast.graph import ChannelGraph
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.plans.costs import count_module

STEPS = 200
"""Rounds that torch-pruning takes to its ratio: in each it ranks anew what is left."""


def torch_pruned(model: nn.Module, example: Tensor, macs: float, *, most: float = 1.0) -> nn.Module:
    """A copy of a CIFAR network, pruned until it has at most ``macs`` of its MACs.

    Of a ResNet only channels inside the blocks can go: torch-pruning does not see that the shortcuts' padding
    has to change with the residual streams, and a network with streams cut no longer runs. The norm is
    ``GroupMagnitudeImportance(p=2)`` as it comes, over the whole network at once; the MACs are our count.
    ``most`` is its ``max_pruning_ratio``, the share of a layer that may go, which it oversteps. By itself it
    cuts layers of VGG-16 to one channel.
    """
    prepare_torchvision()
    package: Any = importlib.import_module("torch_pruning")
    thin = copy.deepcopy(model)
    inner = {f"{name}.conv1" for name, module in thin.named_modules() if isinstance(module, BasicBlock)}
    layers = [(n, m) for n, m in thin.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    inner = inner or {name for name, module in layers if isinstance(module, nn.Conv2d)}
    limit = macs * count_module(thin, example).macs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = package.pruner.BasePruner(
            thin,
            example,
            importance=package.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=most,
            iterative_steps=STEPS,
            ignored_layers=[module for name, module in layers if name not in inner],
        )
        for _ in range(STEPS - 1):
            if count_module(thin, example).macs <= limit:
                break
            pruner.step()
    reached = count_module(thin, example).macs
    if reached > limit:
        raise SlimfastError(f"torch-pruning: expected at most {limit:.0f} MACs, got {reached}")
    for parameter in thin.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        thin(example)
    return thin


def kept_units(graph: ChannelGraph, model: nn.Module, thin: nn.Module) -> dict[str, list[int]]:
    """The units of each group that ``thin``, a pruned copy of ``model``, still has, ascending.

    A unit is known by its entries in the group's vectors: biases, and the scales and statistics of norms.

    Raises:
        SlimfastError: a group that was cut has no vectors, or they do not tell its units apart.
    """
    wide, left = named_tensors(model), named_tensors(thin)
    found = {}
    for group in graph:
        if all(left[m.tensor].shape[m.dim] == wide[m.tensor].shape[m.dim] for m in group.members):
            found[group.name] = list(range(group.n))
            continue
        vectors = [m for m in group.members if wide[m.tensor].dim() == 1]
        if not vectors:
            raise SlimfastError(f"{group.name}: no bias or norm tells which units are left")
        before, after = (torch.stack([tensors[m.tensor] for m in vectors], 1) for tensors in (wide, left))
        same = (after[:, None] == before).all(2)
        if not bool((same.sum(1) == 1).all()):
            raise SlimfastError(f"{group.name}: expected each unit left to be one of the wide network's")
        found[group.name] = sorted(vectors[0].units[same.int().argmax(1).numpy()].tolist())
    return found
