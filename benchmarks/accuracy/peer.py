"""torch-pruning's own global group magnitude pruning (Fang et al., CVPR 2023, "DepGraph"), as a control."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.resnet_cifar import BasicBlock
from slimfast._torchvision import prepare_torchvision
from slimfast.costs import count_module
from slimfast.errors import SlimfastError

STEPS = 200
"""Rounds that torch-pruning takes to its ratio: in each it ranks anew what is left."""


def torch_pruned(model: nn.Module, example: Tensor, macs: float) -> nn.Module:
    """A copy of a CIFAR network, pruned until it has at most ``macs`` of its MACs.

    Of a ResNet only channels inside the blocks can go: torch-pruning does not see that the shortcuts' padding
    has to change with the residual streams, and a network with streams cut no longer runs. The norm is
    ``GroupMagnitudeImportance(p=2)`` as it comes, over the whole network at once; the MACs are our count.
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
