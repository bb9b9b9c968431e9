"""What stands around a network to train or run it in some way, and is no part of it."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from slimfast.errors import ArgumentTypeError, UnsupportedGraph

_log = logging.getLogger(__name__)
# By the names of their classes, for their packages may not be there: that of the attribute with the network.
_HELD = {
    ("torch._dynamo", "OptimizedModule"): "_orig_mod",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("timm.utils", "ModelEma"): "module",
    ("timm.utils", "ModelEmaV2"): "module",
    ("timm.utils", "ModelEmaV3"): "module",
}
# Modules that run a network in a way of their own (to switch this one to eval mode would train it), likewise.
_RUNNERS = {("ultralytics.engine.model", "Model"): "model"}
# Of the modules in an object that is none so many are named.
_NAMED = 6
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Take the network out of the usual wrappers; every verb works on that, and returns it without them.

    They are ``DataParallel``, ``DistributedDataParallel``, what ``torch.compile`` returns, ``AveragedModel``,
    timm's averages, DeepSpeed's engine, and the ``forward`` that accelerate puts around one for a mixed
    precision; the network itself is not touched. A copy of a wrapper would share the network's processes or
    its compiled code, and to look through one takes longer than the network itself.

    Raises:
        TypeError: For what is no module, and for one that runs a network, naming the modules that it holds.
        UnsupportedGraph: For a network that FSDP has sharded, of which no process holds a whole layer.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"expected an nn.Module, got {type(model).__name__}{modules_held(model)}")
    if (name := _attribute_of(model, _RUNNERS)) is not None:
        network, kind = getattr(model, name), type(model).__name__
        raise ArgumentTypeError(
            f"expected a network, got {kind}, which runs one: give its .{name} ({type(network).__name__}), "
            f"and put the thin one in its place"
        )
    refuse_sharded(model)
    while (name := _attribute_of(model, _HELD)) is not None:
        _log.info("%s is a wrapper: the network is its %s", type(model).__name__, name)
        model = getattr(model, name)
    return _with_its_own_forward(model)


def _with_its_own_forward(model: nn.Module) -> nn.Module:
    """Take accelerate's ``forward`` off a network with that of its class behind it; layers are shared."""
    behind = vars(model).get("_original_forward")
    if "forward" not in vars(model) or getattr(behind, "__func__", None) is not type(model).forward:
        return model
    _log.info("the forward of %s is wrapped: the network is what its class says", type(model).__name__)
    plain = copy.copy(model)
    for name in ("forward", "_original_forward"):
        del vars(plain)[name]
    return plain


def modules_held(holder: Any) -> str:
    """Name the modules in an object that is none (a pipeline, a trainer), for an error; nothing where there
    are none.
    """
    found = dict(_modules_in(holder, "", 2))
    named = [f"{path} ({type(module).__name__})" for path, module in found.items()]
    if not named:
        return ""
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    one = "it" if len(named) == 1 else "one of them"
    return f", which holds {', '.join(named[:_NAMED])}{more}: give {one}"


def _modules_in(holder: Any, path: str, depth: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that an object, a list or a mapping holds, each with the way there."""
    if isinstance(holder, Mapping):
        held = {f"{path}[{key!r}]": value for key, value in holder.items()}
    elif isinstance(holder, (list, tuple)):
        held = {f"{path}[{i}]": value for i, value in enumerate(holder)}
    else:
        held = {f"{path}.{name}": value for name, value in getattr(holder, "__dict__", {}).items()}
    for where, value in held.items():
        if isinstance(value, nn.Module):
            yield where, value
    for where, value in held.items():
        if depth > 1 and not isinstance(value, (nn.Module, type)):
            yield from _modules_in(value, where, depth - 1)


def _attribute_of(model: nn.Module, known: Mapping[tuple[str, str], str]) -> str | None:
    """Name the attribute under which one of the ``known`` classes holds its network; None for any other."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    if known is _HELD and isinstance(model, wrappers):
        return "module"
    for base in type(model).__mro__:
        for (package, kind), attribute in known.items():
            if base.__name__ == kind and base.__module__.startswith(package):
                return attribute
    return None


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a network that FSDP has sharded, of either version."""
    if "torch.distributed.fsdp" not in sys.modules:
        return
    for path, module in model.named_modules():
        if _SHARDED.intersection(base.__name__ for base in type(module).__mro__):
            raise UnsupportedGraph(
                f"{path or 'the model'} is sharded by FSDP, so that no process holds it whole: save it by "
                f"torch.distributed.checkpoint (DCP), plan a fresh network that is not sharded, and cut the "
                f"folder by slimfast.prune_checkpoint"
            )
