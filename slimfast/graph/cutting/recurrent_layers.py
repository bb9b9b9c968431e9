"""What PyTorch's recurrent layers hold of their widths: attributes, and parameters side by side in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import nn

Shape: TypeAlias = tuple[int, ...]
# Of the names of parameters of which a hook makes the tensor: what the tensor's own name lacks.
_ENDINGS = ("", "_orig", "_v")


def recurrent_attributes(module: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Find what the attributes of a recurrent layer or cell must be for tensors of these shapes.

    ``shapes``: those of the module's own tensors that change, by name.
    """
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return {}
    suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
    reads, projects = _stored(f"weight_ih{suffix}", shapes), _stored("weight_hr_l0", shapes)
    made = [_stored(f"{kind}{suffix}", shapes) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    rows = next((name for name in made if name is not None), None)
    found: dict[str, int] = {}
    if reads is not None:
        found["input_size"] = shapes[reads][1]
    if rows is not None:
        gates = len(getattr(module, rows)) // module.hidden_size
        found["hidden_size"] = shapes[rows][0] // gates
    if projects is not None:
        found["proj_size"] = shapes[projects][0]
    return found


def _stored(name: str, shapes: Mapping[str, Shape]) -> str | None:
    """Find under which name a tensor changes: its own, or that which a mask or a weight norm makes it of."""
    return next((name + end for end in _ENDINGS if name + end in shapes), None)


def flatten_recurrent(model: nn.Module) -> None:
    """Lay the parameters of each recurrent layer side by side again where cuDNN runs it, as PyTorch does.

    Slices of the wide layer are tensors of their own, which cuDNN would copy together at every forward.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
