"""Refuse networks whose weights are not kept as plain tensors, with what to do instead."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.network import Network

# Packages whose layers hold weights that were quantised.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized",
              "bitsandbytes.nn", "auto_gptq.", "gptqmodel.", "awq.")  # fmt: skip
_ADVICE = (
    "slim the network first, and quantise the thin one; what there is in few bits only is dequantised first, "
    "as by model.dequantize() of transformers"
)


def refuse_unfit(network: Network) -> None:
    """Refuse TorchScript, and weights that are quantised or kept in another form.

    Raises:
        UnsupportedGraph: Naming the layer or the tensor, and what to do.
    """
    for path, module in network.modules.items():
        where = path or "the model itself"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedGraph(f"{where} is TorchScript, which cannot be cut; give what it was made from")
        if _is_quantised(module):
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise UnsupportedGraph(f"{where} is quantised ({kind}); {_ADVICE}")
    for name, tensor in network.tensors.items():
        if isinstance(tensor, FakeTensor) or type(tensor).__name__ == "DTensor":
            continue
        if is_traceable_wrapper_subclass(tensor):
            kind = type(tensor).__name__
            raise UnsupportedGraph(f"{name} is no plain tensor but quantised or packed ({kind}); {_ADVICE}")
        if tensor.is_quantized:
            raise UnsupportedGraph(f"{name} is quantised ({tensor.dtype}); {_ADVICE}")


def _is_quantised(module: nn.Module) -> bool:
    """Say whether a layer holds weights that were quantised, by where its class comes from."""
    return any(base.__module__.startswith(_QUANTISED) for base in type(module).__mro__)
