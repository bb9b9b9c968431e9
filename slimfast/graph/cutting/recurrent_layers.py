"""What PyTorch's recurrent layers hold of their widths: attributes, and parameters side by side in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import nn

Shape: TypeAlias = tuple[int, ...]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def recurrent_attributes(module: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Find what the attributes of a recurrent layer or cell must be for tensors of these shapes.

    ``shapes``: those of the module's own tensors that change, by name.
    """
    if isinstance(module, nn.RNNCellBase):
        gates = 1 if isinstance(module, nn.RNNCell) else 3 if isinstance(module, nn.GRUCell) else 4
        suffix = ""
    elif isinstance(module, nn.RNNBase):
        gates, suffix = _GATES[module.mode], "_l0"
    else:
        return {}
    reads, recurs = shapes.get(f"weight_ih{suffix}"), shapes.get(f"weight_hh{suffix}")
    projects = shapes.get("weight_hr_l0")
    found: dict[str, int] = {}
    if reads:
        found |= {"input_size": reads[1], "hidden_size": reads[0] // gates}
    elif recurs:
        found["hidden_size"] = recurs[0] // gates
    if projects:
        found["proj_size"] = projects[0]
    return found


def flatten_recurrent(model: nn.Module) -> None:
    """Lay the parameters of each recurrent layer side by side again where cuDNN runs it, as PyTorch does.

    Slices of the wide layer are tensors of their own, which cuDNN would copy together at every forward.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
