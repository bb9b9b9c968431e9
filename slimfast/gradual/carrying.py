"""What a training holds of a network, made to hold the thin one in its place: the same objects go on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Set
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph.cutting.cut import select_indices
from slimfast.graph.recording.module_copies import aliases, named_tensors
from slimfast.pruning.training_state import cuts_between, moved_between, optimizers_in, prune_optimizer
from slimfast.wrappers import unwrapped

# What accelerate puts on the root of a network; both are bound to that very module.
_BOUND = ("forward", "_original_forward")
# Hooks on a parameter: a thin one is another tensor, on which they are not.
_ON_PARAMETERS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook",
}
_HOOKS = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)


def become(model: nn.Module, thin: nn.Module) -> None:
    """Give every module of ``model`` what the module of its name has in ``thin``, which was cut from it.

    The modules stay the same objects, so that whoever holds one goes on with the thin network; so do their
    hooks, which report to the objects that they were made for, and which their handles still remove. Its
    tensors are shared with ``thin``. A warning names the parameters whose own hooks are lost.
    """
    _warn_of_hooks(model)
    wide = {id(tensor) for tensor in named_tensors(model).values()}
    for path, module in list(model.named_modules()):
        own = vars(module)
        kept = {name: own[name] for name in ("_modules", *(() if path else _BOUND)) if name in own}
        found = {**vars(thin.get_submodule(path)), **kept}
        found |= {
            name: _same_hooks(own[name], found[name], wide) for name in _HOOKS & own.keys() & found.keys()
        }
        own.clear()
        own.update(found)


def _same_hooks(own: dict[int, Any], thin: Mapping[int, Any], wide: Set[int]) -> dict[int, Any]:
    """Keep a module's dict of hooks, to which their handles point, with those that the thin one has left.

    A hook stays itself, for its copy would report to a copy of its object; but one that holds tensors of the
    wide network, by their identities ``wide``, gives way to its copy, which holds the thin ones.
    """
    kept = {
        number: hook if (mine := own.get(number)) is None or _holds_any(mine, wide) else mine
        for number, hook in thin.items()
    }
    own.clear()
    own.update(kept)
    return own


def _holds_any(hook: Any, tensors: Set[int]) -> bool:
    """Whether the object behind a hook, unless that is a module, has one of these tensors in an attribute."""
    held = getattr(hook, "__self__", hook)
    if isinstance(held, (FunctionType, nn.Module)):
        return False
    waiting: list[Any] = [*getattr(held, "__dict__", {}).values(), *getattr(hook, "args", ())]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor) and id(value) in tensors:
            return True
        if isinstance(value, (list, tuple, dict)):
            waiting += value.values() if isinstance(value, dict) else value
    return False


def _warn_of_hooks(model: nn.Module) -> None:
    """Say which parameters have hooks, on gradients or for a step inside the backward pass."""
    hooked = {
        name: how
        for name, parameter in model.named_parameters()
        for held, how in _ON_PARAMETERS.items()
        if getattr(parameter, held, None)
    }
    if not hooked:
        return
    first, how = next(iter(hooked.items()))
    more = f" and {len(hooked) - 1} more" if len(hooked) > 1 else ""
    warnings.warn(
        f"rounds: {first}{more} has a hook of its own ({how}), which the thin parameter in its place has "
        "not: register it again after each cut",
        UserWarning,
        stacklevel=2,
    )


def carry_optimizer(optimizer: Optimizer, model: nn.Module, thin: nn.Module) -> None:
    """Make an optimizer of ``model`` one of ``thin`` in place, so that whatever holds it (a scheduler, a
    scaler) goes on; raises as :func:`slimfast.pruning.training_state.prune_optimizer`.
    """
    made = prune_optimizer(optimizer, model, thin)
    for old, new in zip(optimizers_in(optimizer), optimizers_in(made), strict=True):
        vars(old).update({name: value for name, value in vars(new).items() if not _holds_optimizers(value)})


def _holds_optimizers(value: Any) -> bool:
    """Whether a value is an optimizer, has one in it, or is bound to one: those stay what they are."""
    if isinstance(value, Mapping):
        return any(_holds_optimizers(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_optimizers(each) for each in value)
    return isinstance(value.__self__ if isinstance(value, MethodType) else value, Optimizer)


def carry_average(average: nn.Module, model: nn.Module, thin: nn.Module) -> None:
    """Cut averaged weights of ``model`` in place, as ``thin`` was cut from it.

    What a repair has solved for, or dead units have left constants to, begins anew with what ``thin`` has:
    averages of other weights would not fit it.

    Args:
        average: A ``torch.optim.swa_utils.AveragedModel`` or one of timm's.
        model: The network before.
        thin: The network now.
    """
    held = averaged(average)
    thin_average = copy.deepcopy(thin)
    cuts, moved = cuts_between(model, thin), moved_between(model, thin)
    now, tied = named_tensors(thin_average), aliases(model)
    with torch.no_grad():
        for name, tensor in named_tensors(held).items():
            name = tied.get(name, name)
            if not moved.get(name) and name in now:
                now[name].copy_(select_indices(tensor.detach(), cuts.get(name, {})))
    become(held, thin_average)


def check_average(held: nn.Module, model: nn.Module) -> None:
    """Refuse the average of another network, by the shapes of its tensors."""
    wide, tied = named_tensors(model), aliases(model)
    for name, tensor in named_tensors(held).items():
        name = tied.get(name, name)
        if name in wide and wide[name].shape != tensor.shape:
            raise SlimfastError(
                f"rounds: expected averages of this network, with {name} {tuple(wide[name].shape)}, got one "
                f"of another, with {tuple(tensor.shape)}"
            )


def check_scheduler(scheduler: Any, optimizer: Optimizer | None) -> None:
    """Refuse a scheduler of another optimizer, which would change rates that nobody steps with."""
    own = getattr(scheduler, "optimizer", None)
    if optimizer is None or not isinstance(own, Optimizer):
        return
    ours = {id(each) for each in optimizers_in(optimizer)}
    if not any(id(each) in ours for each in optimizers_in(own)):
        raise ArgumentError(
            f"rounds: expected the scheduler of this optimizer, got a {type(scheduler).__name__} of another "
            f"one ({type(own).__name__})"
        )


def averaged(average: nn.Module) -> nn.Module:
    """Return the network that an average holds; ``TypeError`` for what is none."""
    if not isinstance(average, nn.Module) or (held := unwrapped(average)) is average:
        raise ArgumentTypeError(
            f"rounds: expected averages as torch.optim.swa_utils.AveragedModel or timm's ModelEma, got "
            f"{type(average).__name__}"
        )
    return held
