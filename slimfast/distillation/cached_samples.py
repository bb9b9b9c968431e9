"""Samples as a cache of teacher outputs knows them: by digests, and run alone where they are new."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.batches import call
from slimfast.distillation.network_outputs import logits_of, named_outputs
from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import map_leaves

KEY = 16
"""Bytes of a digest."""


def keys_of(leaves: Sequence[Tensor], count: int, lengths: Sequence[int] = (), of: int = 0) -> list[bytes]:
    """Digest each sample's bytes in all tensors.

    Of tensors (count, ``of``, ...) sample i counts up to its ``lengths[i]``, if these are given.
    """
    arrays = [leaf.detach().cpu().contiguous() for leaf in leaves]
    per_sample = [a if a.dim() and len(a) == count else a.expand(count, *a.shape) for a in arrays]
    keys = []
    for i in range(count):
        digest = hashlib.blake2b(digest_size=KEY)
        for array in per_sample:
            row = array[i]
            if lengths and row.dim() and len(row) == of:
                row = row[: lengths[i]]
            digest.update(f"{row.dtype}{tuple(row.shape)}".encode())
            digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        keys.append(digest.digest())
    return keys


def digest_of(model: nn.Module) -> bytes:
    """Digest the names and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=KEY)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def logits_at(teacher: nn.Module, inputs: Any, rows: Sequence[int], count: int) -> Tensor:
    """Run the teacher on these samples of a batch of ``count``, and give its logits of them."""

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count
        return leaf[torch.tensor(rows, device=leaf.device)] if whole else leaf

    output = call(teacher, map_leaves(inputs, cut))
    if len(names := list(named_outputs(output))) > 1:
        raise SlimfastError(f"CachedTeacher: expected a teacher with one output, got {', '.join(names)}")
    return logits_of(output)
