"""The thin networks that a recovery trains: how each is made before its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.studies import allocations
from benchmarks.accuracy.studies.peer import torch_pruned
from benchmarks.accuracy.studies.study import Allocation, Study
from slimfast.distillation import DistillationLoss, aligned_hints
from slimfast.plans import Plan
from slimfast.pruning.prune import prune_channels


@dataclass(frozen=True, slots=True)
class Contender:
    """How a thin network is made before it is trained: by a plan, or, where that is None, by torch-pruning,
    which takes at most the share ``most`` of a layer. In several ``rounds`` what was trained is cut again.
    ``loss`` makes the loss of the thin network that it trains; without it the settings say it.
    """

    plan: Callable[[Study, float, int], Plan] | None
    select: str = "l1"
    repair: str | None = None
    damping: float = 1.0
    control: bool = True
    scratch: bool = False
    most: float = 1.0
    rounds: int = 1
    loss: Callable[[nn.Module], DistillationLoss] | None = None


def _of(allocation: Allocation) -> Callable[[Study, float, int], Plan]:
    """An allocation that does not depend on the seed."""
    return lambda study, macs, seed: allocation(study, macs)


# Repair that fits the thin network as it is, before any training.
FITTED: dict[str, Any] = {
    "select": "activations",
    "repair": "activations",
    "damping": 0.0,
    "control": False,
}

# The most telling first: a run that is stopped has these of all seeds.
TELLING: dict[str, Contender] = {
    "default": Contender(_of(allocations.marginal_gain), "lookahead", "activations", control=False),
    "uniform, L1": Contender(_of(allocations.uniform)),
    "uniform, L1, repaired": Contender(_of(allocations.uniform), repair="activations"),
    "group magnitude, repaired": Contender(_of(allocations.group_magnitude), repair="activations"),
    "torch-pruning": Contender(None),
    "uniform, L1, streams whole": Contender(_of(allocations.uniform_inside)),
}
OTHERS: dict[str, Contender] = {
    "group magnitude": Contender(_of(allocations.group_magnitude)),
    "default, streams whole": Contender(
        _of(allocations.marginal_gain_inside), "lookahead", "activations", control=False
    ),
    # The default's units and repair on widths that know nothing: what is left of its lead is the widths'.
    "uniform, lookahead, repaired, streams whole": Contender(
        _of(allocations.uniform_inside), "lookahead", "activations"
    ),
    "default, no repair": Contender(_of(allocations.marginal_gain), "lookahead", control=False),
    "default, units by activations": Contender(
        _of(allocations.marginal_gain), "activations", "activations", control=False
    ),
    "default, units by activations, damping 0": Contender(_of(allocations.marginal_gain), **FITTED),
    "gain in squares": Contender(
        _of(allocations.marginal_gain_of_squares), "activations", "activations", control=False
    ),
    "gain in squares, damping 0": Contender(_of(allocations.marginal_gain_of_squares), **FITTED),
    "gain in squares, damping 0, streams whole": Contender(
        _of(allocations.marginal_gain_of_squares_inside), **FITTED
    ),
    "gain in shares, damping 0": Contender(_of(allocations.marginal_gain_of_shares), **FITTED),
    "gain in shares, damping 0, streams whole": Contender(
        _of(allocations.marginal_gain_of_shares_inside), **FITTED
    ),
    "uniform, L1, damping 0": Contender(_of(allocations.uniform), repair="activations", damping=0.0),
    "group magnitude, damping 0": Contender(
        _of(allocations.group_magnitude), repair="activations", damping=0.0
    ),
    "torch-pruning, a tenth of each layer kept": Contender(None, most=0.9),
    "noise null, L1": Contender(_of(allocations.noise_null)),
    "random widths, L1": Contender(lambda study, macs, seed: allocations.random(study, macs, seed=seed)),
    "uniform, from scratch": Contender(_of(allocations.uniform), scratch=True),
    "paper": Contender(_of(allocations.explained_variance), control=False),
    "paper, repaired": Contender(_of(allocations.explained_variance), repair="activations", control=False),
}
# The same in two rounds: half of the way, an epoch, the rest of the way, the other epochs.
IN_ROUNDS: dict[str, Contender] = {
    f"{name}, in 2 rounds": replace({**TELLING, **OTHERS}[name], rounds=2)
    for name in (
        "default",
        "torch-pruning",
        "uniform, lookahead, repaired, streams whole",
        "group magnitude, repaired",
    )
}
RECOVERY = (TELLING, OTHERS, IN_ROUNDS)


def _starts(
    label: str,
    allocation: Allocation,
    select: str,
    *dampings: float | None,
    control: bool = False,
) -> dict[str, Contender]:
    """The same widths and units with each of these repairs; None is no repair."""
    return {
        f"{label}, {'no repair' if damping is None else f'damping {damping:g}'}": Contender(
            _of(allocation), select, None if damping is None else "activations", damping or 0.0, control
        )
        for damping in dampings
    }


# What a training makes of widths, units and repair: one thing changes from row to row.
STARTS: dict[str, Contender] = (
    _starts("torch-pruning", allocations.torch_pruning, "l1", None, 0.0, 0.1, 1.0, control=True)
    | _starts(
        "torch-pruning, units by activations",
        allocations.torch_pruning_widths,
        "activations",
        *(None, 0.0, 1.0),
        control=True,
    )
    | _starts("default, units by activations", allocations.marginal_gain, "activations", None, 0.0, 1.0)
    | _starts(
        "default, units by magnitude", allocations.by_magnitude(allocations.marginal_gain), "l1", None, 1.0
    )
    | _starts("default, units by L2", allocations.marginal_gain, "l2", 1.0)
    | _starts("default", allocations.marginal_gain, "lookahead", None, 1.0)
    | _starts("gain in squares", allocations.marginal_gain_of_squares, "activations", None, 1.0)
    | _starts("gain in shares", allocations.marginal_gain_of_shares, "activations", 1.0)
    | _starts("group magnitude", allocations.group_magnitude, "l1", None, 1.0, control=True)
)


# The residual branches' ends: what each block adds to the stream.
_BRANCHES = ("layer*.*.conv2",)


def _taught(loss: Callable[[nn.Module], DistillationLoss]) -> Contender:
    """The default's thin network, trained by this loss."""
    return replace(TELLING["default"], loss=loss)


# What a training makes of its loss: the same thin network, seeds, images and steps for each.
LOSSES: dict[str, Contender] = {
    "targets and labels (distill's default)": _taught(lambda thin: DistillationLoss()),
    "targets alone": _taught(lambda thin: DistillationLoss(soft=1.0, hard=0.0)),
    "labels alone": _taught(lambda thin: DistillationLoss(soft=0.0, hard=1.0)),
    "targets at T = 1": _taught(lambda thin: DistillationLoss(temperature=1.0)),
    "targets at T = 2": _taught(lambda thin: DistillationLoss(temperature=2.0)),
    "and hints": _taught(lambda thin: DistillationLoss(hints=aligned_hints(thin, _BRANCHES))),
    "and hints by cut": _taught(
        lambda thin: DistillationLoss(hints=aligned_hints(thin, _BRANCHES, by_cut=True))
    ),
    "and attention": _taught(
        lambda thin: DistillationLoss(hint=0.0, attention=1.0, hints=aligned_hints(thin, _BRANCHES))
    ),
    "decoupled targets": _taught(lambda thin: DistillationLoss(soft=0.0, decoupled=0.9)),
    "correlation": _taught(lambda thin: DistillationLoss(soft=0.0, hard=1.0, correlation=2.0)),
    "and relations": _taught(lambda thin: DistillationLoss(relational=1.0)),
}


def thin_network(contender: Contender, study: Study, macs: float, seed: int) -> nn.Module:
    """The network of a contender, before its training."""
    if contender.plan is None:
        return torch_pruned(study.model, torch.zeros(1, 3, 32, 32), macs, most=contender.most)
    plan = contender.plan(study, macs, seed)
    options: dict[str, Any] = {"select": contender.select, "repair": contender.repair}
    if contender.repair == "activations":
        options["repair_damping"] = contender.damping
    thin = prune_channels(study.model, plan, calibration=study.calibration, verify=False, **options)
    if contender.scratch:
        torch.manual_seed(seed)
        for module in thin.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return thin


def wanted(parts: Sequence[Mapping[str, Contender]], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """(contender, seed) in the order they are trained: a part with all its seeds before the next part."""
    return [(name, seed) for part in parts for seed in seeds for name in part]
