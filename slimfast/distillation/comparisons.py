"""One output of both networks on one batch, with its targets and what counts of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from slimfast.distillation.counting import is_label, next_position
from slimfast.distillation.network_outputs import output_named, teacher_output
from slimfast.distillation.output_kinds import (
    Kind,
    Output,
    aligned,
    positions_of,
    targets_for,
)
from slimfast.distillation.top_logits import TopLogits
from slimfast.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Comparison:
    """An output of the student, the teacher's if there is one, and the targets if there are any.

    ``targets`` are class indices in the shape of the positions, or values in the output's own shape.
    ``counted`` is true where the batch counts: a position for "softmax" and "cosine", an entry of the output
    for the others. None: everywhere. Of a teacher whose top logits alone are kept, these are ``top``.
    """

    name: str
    kind: Kind
    weight: float
    class_dim: int
    student: Tensor
    teacher: Tensor | None
    targets: Tensor | None
    counted: Tensor | None
    top: TopLogits | None = None

    @property
    def by_position(self) -> bool:
        """Whether the classes of a position belong together."""
        return self.kind in ("softmax", "cosine")

    @property
    def counted_positions(self) -> Tensor | None:
        """The positions of which anything counts; None: all."""
        if self.counted is None or self.by_position or self.student.dim() == 1:
            return self.counted
        return self.counted.any(dim=self.class_dim)

    def rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give what counts as rows (P, classes) of both networks, and the class indices of these if any.

        A row of -inf alone counts nothing.
        """
        assert self.teacher is not None
        indices = None if self.targets is None or self.targets.is_floating_point() else self.targets.flatten()
        ours, theirs = self._flat(self.student), self._flat(self.teacher)
        keep = ~(ours.isneginf() | theirs.isneginf()).all(1)
        if (counted := self.counted_positions) is not None:
            keep = keep & counted.flatten()
        if bool(keep.all()):
            return ours, theirs, indices
        return ours[keep], theirs[keep], None if indices is None else indices[keep]

    def _flat(self, x: Tensor) -> Tensor:
        return x.movedim(self.class_dim, -1).flatten(0, -2) if x.dim() > 1 else x[:, None]


def compare(
    outputs: Sequence[Output],
    student: Any,
    teacher: Any,
    targets: Any,
    *,
    mask: Tensor | None,
    shift: bool,
    ignore_index: int,
) -> tuple[Comparison, ...]:
    """Bring together the settled ``outputs`` of both networks on one batch.

    Arguments as in :meth:`DistillationLoss.__call__`.
    """
    found = []
    for output in outputs:
        assert output.kind is not None
        assert output.class_dim is not None
        ours = output_named(student, output.name)
        known = None if teacher is None else teacher_output(teacher, output.name)
        top, theirs = (known, None) if isinstance(known, TopLogits) else (None, known)
        own = targets_for(output, outputs, targets)
        if own is not None:
            own = _in_place(own, ours, output)
        counted = None
        if own is not None and not (_floating(own) and output.kind in ("softmax", "cosine")):
            counted = is_label(own, ignore_index)
            if shift and output.kind == "softmax" and own.dim() > 1:
                own, counted = next_position(own, 0), next_position(counted, False)
        counted = _with_mask(counted, mask, ours, output, shift=shift and own is not None)
        found.append(
            Comparison(
                output.name, output.kind, output.weight, output.class_dim, ours, theirs, own, counted, top
            )
        )
    return tuple(found)


def _in_place(targets: Tensor, tensor: Tensor, output: Output) -> Tensor:
    """Bring targets into the shape that the kind wants, of class indices or values."""
    assert output.class_dim is not None
    where = f"DistillationLoss: output {output.name or 'logits'}"
    if output.kind == "softmax" and not targets.is_floating_point():
        targets = targets.long()
        wanted = positions_of(tensor, output.class_dim) if tensor.dim() > 1 else ()
    else:
        wanted = tuple(tensor.shape)
    placed = aligned(targets, wanted)
    if placed is None:
        raise ArgumentError(f'{where}: "{output.kind}" expects targets {wanted}, got {tuple(targets.shape)}')
    return placed


def _with_mask(
    counted: Tensor | None, mask: Tensor | None, tensor: Tensor, output: Output, *, shift: bool
) -> Tensor | None:
    """Take out of what counts the positions that the batch's mask hides."""
    assert output.class_dim is not None
    if mask is None or tensor.dim() < 2 or positions_of(tensor, output.class_dim) != mask.shape:
        return counted
    seen = mask.bool()
    if shift:
        seen = seen & next_position(seen, False)
    if output.kind not in ("softmax", "cosine"):
        seen = seen.unsqueeze(output.class_dim).expand(tensor.shape)
    return seen if counted is None else counted & seen


def _floating(targets: Tensor | None) -> bool:
    return targets is not None and targets.is_floating_point()
