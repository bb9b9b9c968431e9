"""Derivatives of a network that hides some of what its output depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DETACH = {torch.Tensor.detach, torch.detach}
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class AllDerivatives(TorchFunctionMode):
    """Let a forward depend on what it detaches, and on what it computes under ``torch.no_grad``.

    Outputs of a network that runs without gradients, and of one that stops them on the way, depend on the
    layers before all the same. ``as_it_is`` is a block in which they are stopped.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Exchange what stops gradients."""
        if func in _DETACH or func == _DATA:
            return args[0].view_as(args[0])
        if func is torch._C._set_grad_enabled:
            return func(True)
        return func(*args, **(kwargs or {}))


as_it_is = torch._C.DisableTorchFunction
