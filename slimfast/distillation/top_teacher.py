"""A causal language model whose largest logits are kept in a file, text by text."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.batches import mask_of
from slimfast.distillation.cached_samples import keys_of, logits_at
from slimfast.distillation.causal import sees_what_it_predicts
from slimfast.distillation.top_file import TopFile
from slimfast.distillation.top_logits import TopLogits, share_held, top_logits
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph.recording.forward import tensors_in

# Below it most of what a teacher says is in the rest, of which only the sum is taught.
_LITTLE = 0.5


class TopTeacher:
    """Give the top logits of a causal language model, from a file where they are known.

    A text is known by its tokens up to the last one that the mask shows: in a causal model no position feels
    what comes behind it, so that the padding of another batch makes no new text.
    """

    def __init__(self, teacher: nn.Module, path: Path, digest: bytes, top: int, temperature: float) -> None:
        if not isinstance(top, int) or top < 1:
            raise ArgumentError(f"CachedTeacher: expected top of at least 1, got {top}")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ArgumentError(f"CachedTeacher: temperature must be positive, got {temperature}")
        if sees_what_it_predicts(teacher):
            raise ArgumentTypeError(
                f"CachedTeacher: expected a causal language model for top=, got {type(teacher).__name__}, "
                f"whose outputs change with the padding; leave top= out"
            )
        self._teacher, self._top, self._temperature = teacher, top, float(temperature)
        self._file = TopFile(path, digest, top, self._temperature)
        self._warned = False

    def __len__(self) -> int:
        return len(self._file)

    def outputs(self, inputs: Any) -> TopLogits:
        """Give the top logits of a batch, on its device; those of new texts are computed and written."""
        leaves = list(tensors_in(inputs))
        count, mask = len(leaves[0]), mask_of(inputs)
        if mask is None:
            keys = keys_of(inputs, count)
        else:
            ends = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            lengths = (mask.bool() * ends).amax(1).tolist()
            keys = keys_of(inputs, count, lengths, mask.shape[1])
        new = [i for i, key in enumerate(keys) if key not in self._file]
        if new:
            found = self._computed(inputs, new, count, mask)
            positions = found.rest.shape[1]
            own = [positions if mask is None else lengths[i] for i in new]
            self._file.add([keys[i] for i in new], own, found)
        top = self._file.read(keys, None if mask is None else mask.shape[1])
        device = leaves[0].device
        return TopLogits(
            top.values.to(device), top.indices.to(device), top.rest.to(device), top.temperature, top.classes
        )

    @torch.no_grad()
    def _computed(self, inputs: Any, new: list[int], count: int, mask: Tensor | None) -> TopLogits:
        logits = logits_at(self._teacher, inputs, new, count)
        if logits.dim() != 3 or (mask is not None and logits.shape[1] != mask.shape[1]):
            wanted = "positions" if mask is None else mask.shape[1]
            raise SlimfastError(
                f"CachedTeacher: expected logits (samples, {wanted}, tokens) for top=, got "
                f"{tuple(logits.shape)}"
            )
        if self._top > logits.shape[-1]:
            raise ArgumentError(
                f"CachedTeacher: expected top of at most {logits.shape[-1]}, the teacher's tokens, got "
                f"{self._top}"
            )
        found = top_logits(logits, self._top, self._temperature)
        if mask is not None:
            # What stands at padding may be no number, which is none of a text either.
            hidden = ~mask[torch.tensor(new, device=mask.device)].bool()
            found.values.masked_fill_(hidden.unsqueeze(-1), -torch.inf)
            found.rest.masked_fill_(hidden, -torch.inf)
        if bool(found.values.isnan().any()):
            raise SlimfastError("CachedTeacher: expected logits that are numbers, got others")
        self._warn(share_held(found))
        return found

    def _warn(self, held: float) -> None:
        """Say once that the top tokens are little of what the teacher says."""
        if held < _LITTLE and not self._warned:
            self._warned = True
            warnings.warn(
                f"CachedTeacher: the top {self._top} tokens have {held:.0%} of the probability at "
                f"temperature {self._temperature:g}, and of the others only the sum is taught: take a lower "
                f"temperature, as 1, or a larger top",
                UserWarning,
                stacklevel=2,
            )
