"""What is left of a network's tensors, gathered: all those of a device in one call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.kernels.ops import grouped_gather


def gather_slices(
    tensors: Mapping[str, Tensor], cuts: Mapping[str, Mapping[int, IntArray]], backend: str
) -> dict[str, Tensor]:
    """Gather the slices that are left of the tensors these cuts name, all tensors of a device in one call."""
    thin: dict[str, Tensor] = {}
    for device in sorted({tensors[name].device for name in cuts}, key=str):
        names = [name for name in cuts if tensors[name].device == device]
        thin |= _gather_on_device({n: tensors[n].detach() for n in names}, cuts, backend)
    return thin


def _gather_on_device(
    wide: Mapping[str, Tensor], cuts: Mapping[str, Mapping[int, IntArray]], backend: str
) -> dict[str, Tensor]:
    thin = dict(wide)
    left = {name: sorted(cuts[name].items()) for name in wide}
    while any(left.values()):
        names = [name for name in wide if left[name]]
        # One pass cuts up to two dims of a tensor, which is all that nearly every tensor needs.
        keeps = [{dim: torch.tensor(index, device="cpu") for dim, index in left[name][:2]} for name in names]
        left = {name: dims[2:] for name, dims in left.items()}
        chosen = "reference" if thin[names[0]].is_meta else backend
        gathered = grouped_gather([thin[name] for name in names], keeps, names=names, backend=chosen)
        thin |= dict(zip(names, gathered, strict=True))
    return {name: _in_format_of(wide[name], tensor) for name, tensor in thin.items()}


def _in_format_of(wide: Tensor, thin: Tensor) -> Tensor:
    """Bring the gathered tensor to the wide one's memory format, which kernels for channels-last expect."""
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if wide.ndim == ndim and not wide.is_contiguous() and wide.is_contiguous(memory_format=layout):
            return thin.contiguous(memory_format=layout)
    return thin
