"""The losses and the score of an output by its kind."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from slimfast.distillation.comparisons import Comparison
from slimfast.distillation.counting import mean_counted
from slimfast.distillation.output_losses import binary_target_loss, soft_target_loss, widened
from slimfast.distillation.top_logits import top_target_loss


def soft_loss(c: Comparison, temperature: float) -> Tensor:
    """Measure how far the student's output is from the teacher's; a scalar, 0 where nothing counts."""
    if c.top is not None:
        return top_target_loss(c.student, c.top, temperature=temperature, counted=c.counted)
    assert c.teacher is not None
    if c.kind == "softmax":
        return soft_target_loss(
            c.student, c.teacher, temperature=temperature, class_dim=c.class_dim, counted=c.counted
        )
    if c.kind == "sigmoid":
        return binary_target_loss(c.student, c.teacher, temperature=temperature, counted=c.counted)
    return mean_counted(_distances(c, widened(c.student), widened(c.teacher)), c.counted)


def hard_loss(c: Comparison, label_smoothing: float) -> Tensor:
    """Measure how far the student's output is from the targets; a scalar, 0 where nothing counts."""
    assert c.targets is not None
    student = widened(c.student)
    if c.kind == "softmax":
        return _cross_entropy(c, student, label_smoothing)
    targets = c.targets.to(student.dtype).nan_to_num()
    if c.kind == "sigmoid":
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        values = functional.binary_cross_entropy_with_logits(_clipped(student), smooth, reduction="none")
        return mean_counted(values, c.counted)
    return mean_counted(_distances(c, student, targets), c.counted)


def score(c: Comparison) -> tuple[Tensor, Tensor]:
    """Add up the scores of what counts, and their number.

    Scores are right answers for "softmax" and "sigmoid", minus the squared errors of values, and cosines for
    "cosine".
    """
    assert c.targets is not None
    if c.kind == "softmax":
        targets = c.targets.argmax(c.class_dim) if c.targets.is_floating_point() else c.targets
        values = (c.student.argmax(c.class_dim) == targets).double()
    elif c.kind == "sigmoid":
        values = ((c.student > 0) == (c.targets > 0.5)).double()
    else:
        student, targets = c.student.double(), c.targets.double().nan_to_num()
        if c.kind == "cosine":
            values = functional.cosine_similarity(student, targets, dim=c.class_dim)
        else:
            values = -(student - targets).square()
    counted = torch.ones_like(values, dtype=torch.bool) if c.counted is None else c.counted
    return torch.where(counted, values, 0).sum(), counted.sum().double()


def _distances(c: Comparison, student: Tensor, wanted: Tensor) -> Tensor:
    """Measure the distance of each value, or for "cosine" of each position."""
    if c.kind == "cosine":
        return 1 - functional.cosine_similarity(student, wanted, dim=c.class_dim)
    if c.kind == "smooth_l1":
        return functional.smooth_l1_loss(student, wanted, reduction="none")
    return (student - wanted).square()


def _cross_entropy(c: Comparison, student: Tensor, label_smoothing: float) -> Tensor:
    """Take the cross entropy with labels or probabilities, without the classes whose logit is -inf."""
    assert c.targets is not None
    logits, targets = student.movedim(c.class_dim, 1), c.targets
    if targets.is_floating_point():
        targets = targets.movedim(c.class_dim, 1).to(logits.dtype)
    elif c.counted is not None:
        targets = targets.where(c.counted, -100)
    if label_smoothing:
        targets = _smoothed(targets, logits, label_smoothing)
    if targets.is_floating_point():
        logits = _clipped(logits)
        if c.counted is not None:
            targets = targets * c.counted.unsqueeze(1)
    total = functional.cross_entropy(logits, targets, reduction="sum")
    if c.counted is None:
        return total / (
            targets.numel() // logits.shape[1] if targets.is_floating_point() else targets.numel()
        )
    return total / c.counted.sum().clamp(min=1)


def _smoothed(targets: Tensor, logits: Tensor, label_smoothing: float) -> Tensor:
    """Spread a share of the probability over the classes there are (Szegedy et al. 2016)."""
    if not targets.is_floating_point():
        one_hot = functional.one_hot(targets.clamp(min=0), logits.shape[1])
        targets = one_hot.movedim(-1, 1).to(logits.dtype)
    there = ~logits.isneginf()
    return targets * (1 - label_smoothing) + label_smoothing * there / there.sum(1, keepdim=True).clamp(min=1)


def _clipped(logits: Tensor) -> Tensor:
    """Replace -inf by the lowest finite number, which its probability of 0 may be multiplied with."""
    return logits.masked_fill(logits.isneginf(), torch.finfo(logits.dtype).min)
