"""Students of which each process holds a part: which arrangements of FSDP are trained, and which refused."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from slimfast.distributed.dtensors import is_part
from slimfast.errors import SlimfastError

_REFUSED = ("DEEPSPEED", "MEGATRON_LM")


def check_strategy(student: nn.Module, accelerator: Any) -> None:
    """Raise :class:`SlimfastError` for ways to spread a training that are not supported."""
    # Until its class is imported no module is one.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in student.modules()):
        raise SlimfastError("distill: expected a student sharded by fully_shard (FSDP 2), got FSDP 1")
    name = accelerator.distributed_type.value
    if name in _REFUSED:
        raise SlimfastError(f"distill: expected DDP or FSDP 2, got accelerate's {name}")
    if name == "FSDP" and not accelerator.is_fsdp2:
        raise SlimfastError("distill: expected FSDP 2 (fsdp_version=2), got accelerate's FSDP 1")


def is_sharded(model: nn.Module) -> bool:
    """Tell whether this process holds only parts of the model's parameters.

    Afterwards ``parameters()`` are the parts: FSDP leaves some whole after a forward without a backward,
    until a state dict is taken.
    """
    return any(is_part(tensor) for tensor in model.state_dict().values())


def check_sharded(student: nn.Module, processes: int) -> None:
    """Raise :class:`SlimfastError` where a student is sharded in a way that would train it wrongly.

    Of a parameter that is on every process whole nobody would average the gradients, and tensor parallelism
    wants the same batch in all processes of a row.
    """
    from torch.distributed.fsdp import FSDPModule

    if not any(isinstance(module, FSDPModule) for module in student.modules()):
        raise SlimfastError("distill: the student is sharded, but not by torch.distributed.fsdp.fully_shard")
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        where = f"distill: the student's {name}"
        if not is_part(parameter):
            raise SlimfastError(f"{where}: expected it sharded like others, got it whole on every process")
        part: Any = parameter
        *outer, inner = part.placements
        if not inner.is_shard() or not all(placement.is_replicate() for placement in outer):
            raise SlimfastError(f"{where}: expected it sharded by FSDP alone, got {part.placements}")
        if part.device_mesh.size() != processes:
            size = part.device_mesh.size()
            raise SlimfastError(f"{where}: expected it shared by all {processes} processes, got {size}")
        if part.to_local().device.type != part.device_mesh.device_type:
            raise SlimfastError(f"{where}: expected it on {part.device_mesh.device_type}, got it offloaded")
