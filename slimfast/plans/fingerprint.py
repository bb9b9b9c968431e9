"""Fingerprints of weights: whether a network still has those that its plan was made from."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slimfast.distributed.dtensors import is_part
from slimfast.errors import SlimfastError

PATTERN = re.compile(r"[0-9a-f]{32}")
# Of each of three rows of a tensor: training moves every row, and a look at all values would cost seconds.
_VALUES = 256


def fingerprint(model: nn.Module) -> str | None:
    """Compute the fingerprint of a model's parameters; None where they have no values, or others have some of
    them.
    """
    return fingerprint_of(model.named_parameters())


@torch.no_grad()
def fingerprint_of(parameters: Iterable[tuple[str, Tensor]]) -> str | None:
    """Compute the fingerprint of named parameters; None where some are on the meta device or in parts.

    It goes by values, so that a checkpoint stored in half precision and its copy in float32 have the same.
    """
    digest = hashlib.blake2b(digest_size=16)
    samples: list[Tensor] = []
    for name, tensor in parameters:
        if not tensor.is_floating_point():
            continue
        if tensor.is_meta or is_part(tensor):
            return None
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        samples += _samples(tensor.detach())
    # One copy for each device, not one for each tensor.
    for device in sorted({sample.device for sample in samples}, key=str):
        values = torch.cat([sample for sample in samples if sample.device == device]).cpu()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest() if samples else None


def check_weights(made_from: str | None, found: str | None, *, strict: bool, stacklevel: int = 3) -> None:
    """Warn, or with ``strict`` raise :class:`SlimfastError`, where a plan is of other weights than these.

    ``stacklevel``: where the warning points, as in :func:`warnings.warn`; 3 is the caller's caller.
    """
    if made_from is None or found is None or made_from == found:
        return
    told = f"made from other weights of the same shapes (fingerprint {made_from[:8]}, got {found[:8]})"
    if strict:
        raise SlimfastError(f"prune: the plan was {told}; make the plan again")
    warnings.warn(f"prune: the plan was {told}; its widths may not suit these", stacklevel=stacklevel)


def _samples(tensor: Tensor) -> list[Tensor]:
    if tensor.numel() == 0:
        return []
    rows = tensor if tensor.ndim else tensor.reshape(1)
    chosen = sorted({0, len(rows) // 2, len(rows) - 1})
    return [rows[i].reshape(-1)[:_VALUES].to(torch.float64) for i in chosen]
