"""Samples as a cache of teacher outputs knows them: by digests, and run alone where they are new."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.batches import call, evaluating
from slimfast.distillation.network_outputs import logits_of, named_outputs
from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import map_leaves, tensors_in

KEY = 16
"""Bytes of a digest."""


def keys_of(inputs: Any, count: int, lengths: Sequence[int] = (), of: int = 0) -> list[bytes]:
    """Digest each sample's bytes in all tensors of the inputs, and what else they are.

    Of tensors (count, ``of``, ...) sample i counts up to its ``lengths[i]``, if these are given.
    """
    leaves, rest = _parts(inputs)
    arrays = [leaf.detach().cpu().contiguous() for leaf in leaves]
    per_sample = [a if a.dim() and len(a) == count else a.expand(count, *a.shape) for a in arrays]
    keys = []
    for i in range(count):
        digest = hashlib.blake2b(rest, digest_size=KEY)
        for array in per_sample:
            row = array[i]
            if lengths and row.dim() and len(row) == of:
                row = row[: lengths[i]]
            digest.update(f"{row.dtype}{tuple(row.shape)}".encode())
            digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        keys.append(digest.digest())
    return keys


def _parts(inputs: Any) -> tuple[list[Tensor], bytes]:
    """List the tensors of the inputs, each as often as it is there, and say which arguments they are and what
    the plain ones are; nothing for tensors by their order.
    """
    leaves: list[Tensor] = []

    def described(leaf: Any) -> Any:
        leaves.extend(tensors_in(leaf))
        if isinstance(leaf, Tensor):
            return "a tensor"
        plain = leaf is None or isinstance(leaf, (bool, int, float, complex, str, bytes))
        return ("plain", leaf) if plain else type(leaf).__name__

    rest = repr(map_leaves(inputs, described)).encode()
    if isinstance(inputs, Tensor) or (
        type(inputs) in (tuple, list) and all(isinstance(each, Tensor) for each in inputs)
    ):
        return leaves, b""
    return leaves, rest


def digest_of(model: nn.Module) -> bytes:
    """Digest the names and bytes of all parameters and buffers, those that no state dict has included."""
    digest = hashlib.blake2b(digest_size=KEY)
    state = model.state_dict()
    state |= {name: buffer for name, buffer in model.named_buffers() if name not in state}
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def logits_at(teacher: nn.Module, inputs: Any, rows: Sequence[int], count: int) -> Tensor:
    """Run the teacher on these samples of a batch of ``count``, and give its logits of them.

    In eval mode, in which a sample's do not depend on the others nor on chance.
    """

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count
        return leaf[torch.tensor(rows, device=leaf.device)] if whole else leaf

    with evaluating(teacher):
        output = call(teacher, map_leaves(inputs, cut))
    if len(names := list(named_outputs(output))) > 1:
        raise SlimfastError(f"CachedTeacher: expected a teacher with one output, got {', '.join(names)}")
    return logits_of(output)


class Unchanged:
    """Tell whether a network still has the weights of its digest, made anew only where they were written."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.digest = model, digest_of(model)
        self._seen = self._writes()

    def check(self) -> None:
        """Raise :class:`SlimfastError` for other weights, whose outputs are none of the file."""
        if (writes := self._writes()) == self._seen:
            return
        if digest_of(self._model) != self.digest:
            raise SlimfastError(
                "CachedTeacher: expected the teacher as it was when it was given, got one of other weights, "
                "whose outputs are not those in the file; make a CachedTeacher of it, with a file of its own"
            )
        self._seen = writes

    def _writes(self) -> list[tuple[int, int]]:
        tensors = (*self._model.parameters(), *self._model.buffers())
        return [(id(t), 0 if t.is_inference() else t._version) for t in tensors]
