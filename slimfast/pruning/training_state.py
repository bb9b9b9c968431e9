"""What a training keeps beside the network, cut together with it: optimizer state and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slimfast.arrays import IntArray
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.cutting.cut import select_indices
from slimfast.graph.recording.module_copies import aliases, named_tensors
from slimfast.pruning.manifest_fields import Change
from slimfast.pruning.manifests import check_values, manifest
from slimfast.wrappers import unwrapped

Cuts = dict[str, dict[int, IntArray]]
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def prune_optimizer(optimizer: AnyOptimizer, model: nn.Module, thin: nn.Module) -> AnyOptimizer:
    """Make ``optimizer`` of ``model`` into one of ``thin``, which was pruned from it; neither is changed.

    It is of the same class, with the same hyperparameters for each parameter. State tensors of a parameter's
    shape (momenta, averaged squares) are cut to the same kept indices, those of one element (step counts) are
    copied; of state that is averaged over some dims (Adafactor) the others are cut. Parameters that are not
    ``model``'s stay what they are. Optimizers inside it (a lookahead's, accelerate's) are made anew with it.
    Hooks do not come along, and a learning-rate scheduler holds the optimizer it was made for: make a new one
    and load the old one's ``state_dict``.

    Raises :class:`SlimfastError` where no parameter is ``model``'s, for state that belongs to no single
    parameter (LBFGS's) or is held elsewhere than in ``state``, and for state of weights that a rotation of
    heads has turned in between: momenta could be turned with them, but averaged squares could not.
    """
    moved = moved_between(model, thin)
    cuts = cuts_between(model, thin)
    wide, now = named_tensors(model), named_tensors(thin)
    names = {id(tensor): name for name, tensor in wide.items()}
    optimizers = optimizers_in(optimizer)
    held = [p for each in optimizers for group in each.param_groups for p in group["params"]]
    if not any(id(parameter) in names for parameter in held):
        raise SlimfastError(
            f"optimizer: expected one that holds the model's parameters, got {type(optimizer).__name__} with "
            f"{len(held)} others"
        )
    # A copy in which every parameter, and every tensor beside one, is what it is in the thin network.
    memo: dict[int, Any] = {id(parameter): parameter for parameter in held}
    memo |= {identity: now[name] for identity, name in names.items()}
    for each in optimizers:
        for parameter, state in each.state.items():
            name = names.get(id(parameter))
            dims = cuts.get(name, {}) if name is not None else {}
            for key, tensor in _tensors_of(state):
                where = f"optimizer: {type(each).__name__}: {key} of {name or 'a parameter'}"
                if tensor.numel() > 1 and name is not None and "rotation" in moved.get(name, ()):
                    raise SlimfastError(
                        f"{where}: expected weights in their own basis, got heads that were rotated after "
                        "this training: rotate first, or make a new optimizer for the thin network"
                    )
                memo[id(tensor)] = _cut_state(tensor, parameter, dims, where).clone()
    for each in optimizers:
        for key, tensor in _tensors_of({"param_groups": each.param_groups} | vars(each)):
            if id(tensor) not in memo and tensor.numel() > 1:
                raise SlimfastError(
                    f"optimizer: {type(each).__name__}: {key} {tuple(tensor.shape)}: expected tensors in its "
                    "state alone: it is not known how to cut others"
                )
    return _copy_optimizers(optimizers, memo)


def prune_state(state: Mapping[str, Any], model: nn.Module, thin: nn.Module) -> dict[str, Any]:
    """Cut the state dict of something that holds tensors of ``model`` under its names, to fit ``thin``.

    For averaged weights (``torch.optim.swa_utils.AveragedModel``, timm's ``ModelEmaV3``). What a repair has
    solved for is of ``thin`` alone: the state has the slices, and a warning says so.

    Args:
        state: The state dict. Names may have a prefix, such as ``module.``, and what is not named like a
            parameter or a buffer of ``model`` comes along as it is.
        model: The network.
        thin: What was pruned from it.

    Returns:
        The state dict for the same of ``thin``.

    Raises:
        SlimfastError: Naming the tensor that does not have the shape it has in ``model``, for networks of
            which one was not pruned from the other, and where dead units have left constants to the biases of
            ``thin``, which they would have to leave to those of the state.

    Example:
        average = AveragedModel(thin)
        average.load_state_dict(slimfast.prune_state(old.state_dict(), model, thin))
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(f"state: expected a state dict, got {type(state).__name__}")
    model, thin = unwrapped(model), unwrapped(thin)
    cuts, wide = cuts_between(model, thin), named_tensors(model)
    known = {name: name for name in wide} | aliases(model)
    found: dict[str, Any] = {}
    check_values(moved_between(model, thin), "state")
    for key, value in state.items():
        name = next((known[suffix] for suffix in _suffixes(key) if suffix in known), None)
        if name is None or not isinstance(value, Tensor):
            found[key] = value
            continue
        if value.shape != wide[name].shape:
            raise SlimfastError(
                f"state: {key}: expected shape {tuple(wide[name].shape)}, got {tuple(value.shape)}"
            )
        found[key] = select_indices(value.detach(), cuts.get(name, {})).clone()
    return found


def cuts_between(model: nn.Module, thin: nn.Module) -> Cuts:
    """Find which indices of each tensor of ``model`` its descendant ``thin`` holds.

    They follow from what both keep of their origin. Raises :class:`SlimfastError` for networks of which one
    was not pruned from the other.
    """
    first, second = manifest(model), manifest(thin)
    cuts: Cuts = {}
    for name, shape in first.shapes_before.items():
        if second.shapes_before.get(name) != shape:
            other = second.shapes_before.get(name, "no such tensor")
            raise SlimfastError(f"thin: expected {name} cut from one of shape {shape}, got {other}")
        for dim in range(len(shape)):
            before = first.keeps.get(name, {}).get(dim, np.arange(shape[dim]))
            after = second.keeps.get(name, {}).get(dim, np.arange(shape[dim]))
            if not np.isin(after, before).all():
                raise SlimfastError(f"thin: {name} dim {dim} holds indices that the model has not")
            if len(after) < len(before):
                cuts.setdefault(name, {})[dim] = np.searchsorted(before, after).astype(np.int64)
    return cuts


def moved_between(model: nn.Module, thin: nn.Module) -> dict[str, tuple[Change, ...]]:
    """Find the tensors whose values were changed between a network and its descendant, and by what."""
    before = manifest(model).moved
    return {name: changes[len(before.get(name, ())) :] for name, changes in manifest(thin).moved.items()}


def optimizers_in(optimizer: AnyOptimizer) -> list[AnyOptimizer]:
    """List the optimizer, and those it holds in attributes, lists and dicts."""
    found: list[Any] = []
    waiting: list[Any] = [optimizer]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Optimizer):
            found.append(value)
            waiting += vars(value).values()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return found


def _copy_optimizers(optimizers: list[AnyOptimizer], memo: dict[int, Any]) -> AnyOptimizer:
    """Copy the first, which then holds copies of the others.

    ``copy.deepcopy`` would leave out what a class holds beside its state and groups, such as the optimizer it
    wraps. Hooks stay behind, and so does what stands for a method of the class, which knows the old one (a
    scheduler's ``step`` that counts); other objects are shared.
    """
    copies = [(optimizer, object.__new__(type(optimizer))) for optimizer in optimizers]
    memo |= {id(optimizer): made for optimizer, made in copies}
    for optimizer, made in copies:
        made.__setstate__(
            {
                name: copy.deepcopy(value, memo) if _is_copied(value) else value
                for name, value in vars(optimizer).items()
                if not name.endswith("_hooks") and not (callable(value) and hasattr(type(optimizer), name))
            }
        )
    return copies[0][1]


def _is_copied(value: Any) -> bool:
    """Say whether a value is an optimizer's own: not a gradient scaler, a process's state and the like."""
    return isinstance(value, (Optimizer, Tensor, Mapping, list, tuple, set, MethodType))


def _tensors_of(state: Any, key: str = "state") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a parameter's state, however nested, with the key each stands under."""
    if isinstance(state, Tensor):
        yield key, state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield from _tensors_of(value, str(name))
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors_of(value, key)


def _cut_state(tensor: Tensor, parameter: Tensor, dims: Mapping[int, IntArray], where: str) -> Tensor:
    """Cut the state of a parameter as the parameter is; its averaged dims have length 1."""
    if tensor.numel() == 1 or not tensor.ndim:
        return tensor
    fits = tensor.ndim == parameter.ndim and all(
        length in (1, full) for length, full in zip(tensor.shape, parameter.shape, strict=True)
    )
    if not fits:
        raise SlimfastError(
            f"{where}: expected the parameter's shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}: "
            "it cannot be cut"
        )
    with torch.no_grad():
        return select_indices(tensor, {dim: index for dim, index in dims.items() if tensor.shape[dim] > 1})


def _suffixes(key: str) -> Iterator[str]:
    """Yield the key itself, then without its first parts."""
    parts = key.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))
