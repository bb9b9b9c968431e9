"""Weights that a hook makes before each forward: of masks, and of the weight and spectral norms of old."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def make_hooked(model: nn.Module) -> None:
    """Make the weights of hooks of the parameters there are now, which the next forward would.

    Until then the attribute that holds one has its old width, and the memory of it.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            with torch.no_grad():
                if isinstance(hook, BasePruningMethod):
                    setattr(module, str(hook._tensor_name), hook.apply_mask(module))  # type: ignore[no-untyped-call]
                elif isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    # its iteration goes on with training alone
                    made = hook.compute_weight(module, do_power_iteration=False)
                    setattr(module, hook.name, made)
