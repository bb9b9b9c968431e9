"""What a forward decides by values: how many rows a mask chooses, which number Python is told.

Other weights make other values, so that a thin network would choose another number of rows, and nothing could
be said of its shapes. What the first recording of a network decides is therefore written down, and the
recordings of its thin copies are handed the same decisions. They need no data then: of what was decided a
tensor without data takes the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from slimfast.graph.recording.inputs import map_leaves

# How an operation decides: by the length of its result, by a number, by the masks among its indices, or, as
# operations of others may, by a length where its description for tensors without data says so.
Decides = Literal["", "length", "number", "mask", "perhaps"]

_MASKS = (torch.bool, torch.uint8)
# What tells Python a number.
_NUMBER = str(torch.ops.aten._local_scalar_dense.default)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What one operation decided: its result, the number, or the positions that its masks choose."""

    operation: str
    result: Any


class OtherDecision(RuntimeError):
    """Raised where a forward asks for another decision than is next, or for more than were made."""


class Decider:
    """Notes decisions in a recording on real tensors, or hands on those of an earlier one.

    ``given``: None to note. ``real``: the recording has data. ``decisions``: those noted or handed on so far.
    """

    def __init__(self, given: Sequence[Decision] | None, *, real: bool) -> None:
        self.decisions: list[Decision] = []
        self._given = given
        self._real = real

    def run(self, how: Decides, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that decides something, and return its result."""
        name = str(func)
        if how == "mask":
            return self._chosen_by_masks(name, func, args, kwargs)
        if how == "perhaps":
            return self._perhaps(name, func, args, kwargs)
        if self._given is None:
            return self._note(name, func(*args, **kwargs))
        result = self._next(name)
        if how == "number" and _is_constant(args[0]):
            # Python made a tensor of a number, which may be a width.
            return func(*args, **kwargs)
        return result

    def listed(self, tensor: Tensor) -> Any:
        """Return ``tensor.tolist()``, number by number, as tensors without data do it."""
        if tensor.dim() > 0:
            return [self.listed(part) for part in tensor.unbind()]
        if self._given is None:
            return self._note(_NUMBER, tensor.tolist())
        return self._next(_NUMBER)

    def _note(self, name: str, result: Any, kept: Any = None) -> Any:
        """Note what was decided, and return the result of the operation."""
        kept = result if kept is None else kept
        detached = map_leaves(kept, lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf)
        self.decisions.append(Decision(name, detached))
        return result

    def _next(self, name: str) -> Any:
        """Hand on the next decision, as tensors without data where the recording has none."""
        at = len(self.decisions)
        assert self._given is not None, "decisions are handed on, not noted"
        if at >= len(self._given) or self._given[at].operation != name:
            expected = self._given[at].operation if at < len(self._given) else "nothing more"
            raise OtherDecision(f"decides by values otherwise: expected {expected}, got {name}")
        self.decisions.append(self._given[at])
        return map_leaves(self._given[at].result, self._handed_on)

    def _handed_on(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        # a forward may write into it
        return leaf.clone() if self._real else torch.empty(leaf.shape, dtype=leaf.dtype, device="cpu")

    def _chosen_by_masks(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation with the positions that masks choose in their places, where there are masks."""
        self_, indices, *rest = args
        masks = [index for index in indices if isinstance(index, Tensor) and index.dtype in _MASKS]
        if not masks:
            return func(*args, **kwargs)
        # What is chosen whole may be shorter in a thin network.
        whole = _same_along(masks[0]) if len(args) == 2 and indices[-1] is masks[0] and len(masks) == 1 else 0
        if whole:
            mask = masks[0]
            for _ in range(whole):
                mask = mask.select(-1, 0)
            rows = self._chosen_by_masks(name, func, (self_, [*indices[:-1], mask]), kwargs)
            at = len(indices) - 1
            return rows.flatten(at, at + whole)
        if self._given is None:
            positions = [list(mask.nonzero(as_tuple=True)) for mask in masks]
            self._note(name, None, positions)
        else:
            positions = self._next(name)
        left = iter(positions)
        given = [
            place
            for index in indices
            for place in (next(left) if any(index is mask for mask in masks) else [index])
        ]
        return func(self_, given, *rest, **kwargs)

    def _perhaps(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation of others; what it decided is its result where it says that it cannot know it
        without data."""
        if self._given is None:
            result = func(*args, **kwargs)
            # of which the shapes are enough
            empty = map_leaves(result, lambda t: t.to("meta") if isinstance(t, Tensor) else t)
            return self._note(name, result, empty)
        decided = self._next(name)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return decided


def _same_along(mask: Tensor) -> int:
    """Count the last axes along which a mask was expanded, one of them left out at least."""
    repeated = [stride == 0 and n > 1 for stride, n in zip(mask.stride(), mask.shape, strict=True)]
    count = next((i for i, one in enumerate(reversed(repeated)) if not one), len(repeated))
    return min(count, mask.dim() - 1)


def _is_constant(tensor: Any) -> bool:
    """Say whether a tensor without data is known to hold a certain number."""
    return getattr(tensor, "constant", None) is not None
