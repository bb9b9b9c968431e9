"""The largest of a teacher's logits at each position, what the others come to, and a loss towards them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slimfast.distillation.counting import mean_counted
from slimfast.distillation.output_losses import soft_target_loss, widened
from slimfast.errors import ArgumentError

# Logits of a student that are widened and searched at once: 256 MiB of float32.
_AT_ONCE = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class TopLogits:
    """What is kept of logits (..., classes): the ``top`` most probable classes of each position.

    ``values`` (..., top) are log probabilities at ``temperature``, ``indices`` (..., top) the classes, int64,
    and ``rest`` (...) is the log of what all other classes have together. A position that is not known has
    -inf in all of them, and counts in no loss.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor
    temperature: float
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits that these are of."""
        return (*self.rest.shape, self.classes)


def top_logits(logits: Tensor, top: int, temperature: float) -> TopLogits:
    """Keep the ``top`` most probable of the last dim's classes, and the sum of the others.

    Computed in float32 or wider, without a copy of all logits at once.
    """
    flat, classes = logits.reshape(-1, logits.shape[-1]), logits.shape[-1]
    parts = []
    for some in torch.split(flat, max(1, _AT_ONCE // classes)):
        log_p = (widened(some) / temperature).log_softmax(-1)
        # Where every class is ruled out nothing is known.
        log_p = log_p.masked_fill(some.isneginf().all(-1, keepdim=True), -torch.inf)
        values, indices = log_p.topk(top, -1)
        # Summed rather than subtracted from 1: next to a sure class there is nothing left of the difference.
        rest = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)
        parts.append((values, indices, rest))
    values, indices, rest = (torch.cat(each) for each in zip(*parts, strict=True))
    shape = logits.shape[:-1]
    return TopLogits(
        values.view(*shape, top), indices.view(*shape, top), rest.view(shape), temperature, classes
    )


def top_target_loss(
    student: Tensor, teacher: TopLogits, *, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Compare soft targets of which the largest are known: T^2 KL(teacher || student) over the known classes
    and all others taken as one, a scalar.

    The mean over the positions, of those that are ``counted``. Student logits (..., classes). Never more than
    :func:`soft_target_loss` on whole logits, as joining classes cannot raise a divergence; equal to it where
    all classes are known, or where both networks share out the rest alike. Computed in float32 or wider.

    Raises:
        ArgumentError: Logits of another shape, or another temperature than the teacher's are kept at.
    """
    if tuple(student.shape) != teacher.shape:
        raise ArgumentError(
            f"DistillationLoss: student logits are {tuple(student.shape)}, the teacher's {teacher.shape}"
        )
    if temperature != teacher.temperature:
        raise ArgumentError(
            f"DistillationLoss: expected temperature={teacher.temperature:g}, at which the teacher's top "
            f"{teacher.values.shape[-1]} logits are kept, got {temperature:g}"
        )
    ours = widened(student) / temperature
    own = ours.gather(-1, teacher.indices)
    theirs = [teacher.values]
    if teacher.values.shape[-1] < teacher.classes:
        others = ours.scatter(-1, teacher.indices, -torch.inf).logsumexp(-1, keepdim=True)
        own, theirs = torch.cat([own, others], -1), [*theirs, teacher.rest.unsqueeze(-1)]
    known = torch.cat(theirs, -1).to(own.dtype)
    return soft_target_loss(own, known, temperature=1.0, counted=counted) * temperature**2


def share_held(teacher: TopLogits) -> float:
    """Measure the mean share of the probability that the kept classes have, where positions are known."""
    known = ~teacher.values.isneginf().all(-1)
    return float(mean_counted(teacher.values.double().exp().sum(-1), known))
