"""What a network returns, and the logits in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.errors import ArgumentTypeError


def logits_of(output: Any) -> Tensor:
    """The logits in a network's output: the tensor itself, its ``logits`` entry, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ArgumentTypeError(
            f"expected logits, a tuple or a mapping with 'logits', got {type(output).__name__}"
        )
    return found
