"""What a student is trained on: a weighted sum of losses towards the teacher, the labels and its features."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimfast.distillation.hints import Features, FeatureTap, Hint, hint_loss, tapped
from slimfast.distillation.network_outputs import logits_of
from slimfast.distillation.output_losses import (
    attention_loss,
    correlation_loss,
    decoupled_loss,
    relational_loss,
    soft_target_loss,
    widened,
)
from slimfast.errors import ArgumentError

_OF_FEATURES = ("hint", "attention")
_WEIGHTS = ("soft", "hard", "decoupled", "correlation", "relational", *_OF_FEATURES)


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    r"""A weighted sum of losses, for :func:`distill` or any own loop.

        loss = DistillationLoss(hints=aligned_hints(student, ["layer1.0.conv1"]))
        with loss.watching(student, teacher) as features:
            for inputs, targets in loader:
                with torch.no_grad():
                    expected = teacher(inputs)
                loss(student(inputs), expected, targets, features()).backward()

    The weights: ``soft`` targets, ``hard`` labels, and the aligned ``hint``\ s, all in use by default;
    ``decoupled`` soft targets, the ``correlation`` of DIST and the ``relational`` loss, all three of the
    logits; and ``attention``, on the hinted features. ``class_dim`` is where the logits have their classes;
    ``label_smoothing`` is that of the cross entropy (Szegedy et al. 2016).
    """

    temperature: float = 4.0
    soft: float = 0.9
    hard: float = 0.1
    hint: float = 1.0
    label_smoothing: float = 0.0
    hints: tuple[Hint, ...] = ()
    class_dim: int = -1
    decoupled: float = 0.0
    correlation: float = 0.0
    relational: float = 0.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ArgumentError(f"DistillationLoss: temperature must be positive, got {self.temperature}")
        if not 0 <= self.label_smoothing < 1:
            raise ArgumentError(
                f"DistillationLoss: label_smoothing must be in [0, 1), got {self.label_smoothing}"
            )
        for name in _WEIGHTS:
            weight = getattr(self, name)
            if not (weight >= 0 and math.isfinite(weight)):
                raise ArgumentError(f"DistillationLoss: the weight {name} must be >= 0, got {weight}")
        of_features = (self.hint or self.attention) and self.hints
        if not of_features and not any(getattr(self, name) for name in _WEIGHTS if name not in _OF_FEATURES):
            raise ArgumentError("DistillationLoss: every term has weight 0")

    def __call__(
        self, student: Any, teacher: Any, targets: Tensor | None = None, features: Features = ()
    ) -> Tensor:
        """The loss, a scalar, of the two networks' outputs (see :func:`logits_of`) on one batch.

        Targets are class indices, or probabilities in the shape of the logits; ``features`` is what
        :meth:`watching` yields, called: one pair per hint.
        """
        terms = self.terms(student, teacher, targets, features)
        return torch.stack([weight * value for weight, value in terms.values()]).sum()

    def terms(
        self, student: Any, teacher: Any, targets: Tensor | None = None, features: Features = ()
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms with a weight above zero by name, each as (weight, unweighted scalar)."""
        terms: dict[str, tuple[float, Tensor]] = {}
        logits = logits_of(student)
        for name in ("hard", "decoupled"):
            weight = getattr(self, name)
            if weight and targets is None:
                raise ArgumentError(
                    f"DistillationLoss: {name}={weight} needs targets; without them pass {name}=0"
                )
        if self.soft or self.decoupled or self.correlation or self.relational:
            terms |= self._of_logits(logits, logits_of(teacher), targets)
        if self.hard:
            assert targets is not None
            by_class = widened(logits).movedim(self.class_dim, 1)
            if targets.is_floating_point():
                targets = targets.movedim(self.class_dim, 1)
            value = functional.cross_entropy(by_class, targets, label_smoothing=self.label_smoothing)
            terms["hard"] = (self.hard, value)
        if (self.hint or self.attention) and self.hints:
            if len(features) != len(self.hints):
                raise ArgumentError(
                    f"DistillationLoss: {len(self.hints)} hints, {len(features)} pairs of features; run both "
                    "networks inside watching(student, teacher) and pass what it yields, called"
                )
            for name, loss in (("hint", hint_loss), ("attention", attention_loss)):
                if weight := getattr(self, name):
                    terms[name] = (weight, torch.stack([loss(*pair) for pair in features]).mean())
        return terms

    def _of_logits(
        self, logits: Tensor, expected: Tensor, targets: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of the two networks' logits."""
        if logits.shape != expected.shape:
            got, wanted = tuple(logits.shape), tuple(expected.shape)
            raise ArgumentError(f"DistillationLoss: student logits are {got}, the teacher's {wanted}")
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.soft:
            value = soft_target_loss(logits, expected, temperature=self.temperature, class_dim=self.class_dim)
            terms["soft"] = (self.soft, value)
        # One row per prediction, as a token is.
        ours, theirs = (x.movedim(self.class_dim, -1).flatten(0, -2) for x in (logits, expected))
        if self.decoupled:
            assert targets is not None
            if targets.is_floating_point():
                raise ArgumentError("DistillationLoss: decoupled needs targets that are class indices")
            value = decoupled_loss(ours, theirs, targets.flatten(), temperature=self.temperature)
            terms["decoupled"] = (self.decoupled, value)
        if self.correlation:
            value = correlation_loss(ours, theirs, temperature=self.temperature)
            terms["correlation"] = (self.correlation, value)
        if self.relational:
            terms["relational"] = (self.relational, relational_loss(ours, theirs))
        return terms

    def watching(self, student: nn.Module, teacher: nn.Module) -> AbstractContextManager[FeatureTap]:
        """Record the hinted modules' outputs while both networks run; the hooks go when the block ends."""
        return tapped(self.hints, student, teacher)
