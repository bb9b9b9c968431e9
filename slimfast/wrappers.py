"""What stands around a network to train or run it in some way, and is no part of it."""

from __future__ import annotations

import copy
import logging
import sys

from torch import nn
from torch.optim.swa_utils import AveragedModel

from slimfast.errors import UnsupportedGraph

_log = logging.getLogger(__name__)
# By the names of their classes, for their packages may not be there: that of the attribute with the network.
_HELD = {
    ("torch._dynamo", "OptimizedModule"): "_orig_mod",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("timm.utils", "ModelEma"): "module",
    ("timm.utils", "ModelEmaV2"): "module",
    ("timm.utils", "ModelEmaV3"): "module",
}
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Take the network out of the usual wrappers; every verb works on that, and returns it without them.

    They are ``DataParallel``, ``DistributedDataParallel``, what ``torch.compile`` returns, ``AveragedModel``,
    timm's averages, DeepSpeed's engine, and the ``forward`` that accelerate puts around one for a mixed
    precision; the network itself is not touched. A copy of a wrapper would share the network's processes or
    its compiled code, and to look through one takes longer than the network itself.

    Raises:
        UnsupportedGraph: For a network that FSDP has sharded, of which no process holds a whole layer.
    """
    refuse_sharded(model)
    while (name := _attribute_of(model)) is not None:
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


def _attribute_of(model: nn.Module) -> str | None:
    """Name the attribute under which a wrapper holds its network; None for what is no wrapper."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        return "module"
    for base in type(model).__mro__:
        for (package, kind), attribute in _HELD.items():
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
