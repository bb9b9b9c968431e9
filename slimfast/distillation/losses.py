"""What a student is trained on: a weighted sum of losses towards the teacher, the labels and its features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.causal import shifts_labels
from slimfast.distillation.comparisons import Comparison, compare
from slimfast.distillation.counting import IGNORED, counted_in, nothing
from slimfast.distillation.hints import Features, FeatureTap, Hint, hint_loss, tapped
from slimfast.distillation.kind_losses import hard_loss, soft_loss
from slimfast.distillation.network_outputs import common_outputs
from slimfast.distillation.output_kinds import Kind, Output, all_known, settled_outputs
from slimfast.distillation.output_losses import (
    attention_loss,
    correlation_loss,
    decoupled_loss,
    relational_loss,
)
from slimfast.errors import ArgumentError

_OF_FEATURES = ("hint", "attention")
_OF_OUTPUTS = ("soft", "hard", "decoupled", "correlation", "relational")
_WEIGHTS = (*_OF_OUTPUTS, *_OF_FEATURES)
# What Hugging Face's configurations call the problem of a sequence classifier.
_OF_PROBLEMS: dict[str | None, Kind] = {
    "regression": "mse",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    r"""A weighted sum of losses, for :func:`distill` or any own loop.

    The weights: ``soft`` targets, ``hard`` labels, and the aligned ``hint``\ s, all in use by default;
    ``decoupled`` soft targets, the ``correlation`` of DIST and the ``relational`` loss, all three of the
    logits; and ``attention``, on the hinted features. ``class_dim`` is where the logits have their classes,
    None: where the targets fit; ``label_smoothing`` is that of the cross entropy (Szegedy et al. 2016).

    Every output of the network is taught: soft and hard losses are those of its kind, a softmax over classes,
    a sigmoid for each yes or no, or the values themselves. The kinds are found from the first targets
    (:func:`slimfast.distillation.output_kinds.settled_outputs` says how) or given as ``outputs``, which then
    are all that is taught.

    What does not count, in any term: targets that are negative, ``ignore_index`` (None: what the network's
    configuration says, if it does) or NaN; and positions that the batch's attention mask hides.

    ``shift``: position t is taught on label t + 1, as a causal language model's is where labels are the
    inputs. None: :func:`slimfast.distillation.causal.shifts_labels` decides on the first batch.

    Example:
        loss = DistillationLoss(hints=aligned_hints(student, ["layer1.0.conv1"]))
        with loss.watching(student, teacher) as features:
            for inputs, targets in loader:
                with torch.no_grad():
                    expected = teacher(inputs)
                loss(student(inputs), expected, targets, features()).backward()
    """

    temperature: float = 4.0
    soft: float = 0.9
    hard: float = 0.1
    hint: float = 1.0
    label_smoothing: float = 0.0
    hints: tuple[Hint, ...] = ()
    class_dim: int | None = None
    decoupled: float = 0.0
    correlation: float = 0.0
    relational: float = 0.0
    attention: float = 0.0
    outputs: tuple[Output, ...] = field(default=(), kw_only=True)
    shift: bool | None = field(default=None, kw_only=True)
    ignore_index: int | None = field(default=None, kw_only=True)

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
        if not of_features and not any(getattr(self, name) for name in _OF_OUTPUTS):
            raise ArgumentError("DistillationLoss: every term has weight 0")

    def settled(
        self, student: Any, teacher: Any, targets: Any, inputs: Any = None, model: Any = None
    ) -> DistillationLoss:
        """Find from one batch what this loss was not given: the outputs and their kinds, the shift.

        ``student`` and ``teacher`` are the networks' outputs, ``inputs`` what the student, ``model``, was
        called with. Done for every batch where it is not done once. A loss of features alone is as it is.
        """
        if targets is None and not any(getattr(self, name) for name in _OF_OUTPUTS):
            return self
        if self.shift is not None and self.ignore_index is not None and all_known(self.outputs):
            return self
        config = getattr(model, "config", None)
        ignored = self.ignore_index
        if ignored is None:
            ignored = getattr(config, "semantic_loss_ignore_index", IGNORED)
        shift = shifts_labels(model, inputs, targets, ignored) if self.shift is None else self.shift
        outputs = self.outputs or tuple(Output(name) for name in common_outputs(student, teacher))
        if len(outputs) == 1 and outputs[0].kind is None:
            kind = _OF_PROBLEMS.get(getattr(config, "problem_type", None))
            outputs = (replace(outputs[0], kind=kind),)
        found = settled_outputs(outputs, student, targets, self.class_dim, ignored)
        return replace(self, outputs=found, shift=shift, ignore_index=ignored)

    def __call__(
        self,
        student: Any,
        teacher: Any,
        targets: Any = None,
        features: Features = (),
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compare the two networks' outputs on one batch; a scalar.

        Targets are class indices, or values (probabilities, zeros and ones) in the shape of the output; of
        several outputs, a tuple or a dict of them by name. ``features`` is what :meth:`watching` yields,
        called: one pair per hint. ``mask`` is false at positions that do not count, as padding.
        """
        terms = self.terms(student, teacher, targets, features, mask=mask)
        return torch.stack([weight * value for weight, value in terms.values()]).sum()

    def terms(
        self,
        student: Any,
        teacher: Any,
        targets: Any = None,
        features: Features = (),
        *,
        mask: Tensor | None = None,
    ) -> dict[str, tuple[float, Tensor]]:
        """Compute the terms with a weight above zero, each by its name as (weight, unweighted scalar).

        Of several outputs each has its own, as "soft of boxes".
        """
        for name in ("hard", "decoupled"):
            weight = getattr(self, name)
            if weight and targets is None:
                raise ArgumentError(
                    f"DistillationLoss: {name}={weight} needs targets; without them pass {name}=0"
                )
        loss = self.settled(student, teacher, targets)
        compared = loss.compared(student, teacher, targets, mask)
        terms: dict[str, tuple[float, Tensor]] = {}
        for c in compared:
            own = self._of_output(c)
            if not own and not self.hints:
                raise ArgumentError(
                    f"DistillationLoss: output {c.name} has neither targets nor a soft loss: it would not be "
                    f'taught; name those that are to be: outputs=(Output("NAME"),)'
                )
            of = f" of {c.name}" if len(compared) > 1 else ""
            terms |= {name + of: (weight * c.weight, value) for name, (weight, value) in own.items()}
        if (self.hint or self.attention) and self.hints:
            terms |= self._of_features(features, compared, mask)
        return terms

    def compared(
        self, student: Any, teacher: Any, targets: Any, mask: Tensor | None = None
    ) -> tuple[Comparison, ...]:
        """Bring together the outputs of a settled loss on one batch, their targets and what counts of them.

        None where the loss is of features alone.
        """
        if not self.outputs:
            return ()
        assert self.shift is not None
        assert self.ignore_index is not None
        return compare(
            self.outputs,
            student,
            teacher if self.soft or self.decoupled or self.correlation or self.relational else None,
            targets,
            mask=mask,
            shift=self.shift,
            ignore_index=self.ignore_index,
        )

    def _of_output(self, c: Comparison) -> dict[str, tuple[float, Tensor]]:
        """Compute the terms of one output."""
        terms: dict[str, tuple[float, Tensor]] = {}
        if c.top is not None:
            self._check_top(c)
            if self.soft:
                terms["soft"] = (self.soft, soft_loss(c, self.temperature))
        if c.teacher is not None:
            if c.student.shape != c.teacher.shape:
                got, wanted = tuple(c.student.shape), tuple(c.teacher.shape)
                name = c.name or "logits"
                raise ArgumentError(f"DistillationLoss: student {name} are {got}, the teacher's {wanted}")
            if self.soft:
                terms["soft"] = (self.soft, soft_loss(c, self.temperature))
            if self.decoupled or self.correlation or self.relational:
                terms |= self._of_rows(c)
        if self.hard and c.targets is not None:
            terms["hard"] = (self.hard, hard_loss(c, self.label_smoothing))
        return terms

    def _check_top(self, c: Comparison) -> None:
        """Refuse terms that want more of the teacher's logits than the largest."""
        wanting = [name for name in ("decoupled", "correlation", "relational") if getattr(self, name)]
        what = ", ".join(wanting) or f'an output of kind "{c.kind}"'
        if wanting or c.kind != "softmax" or c.class_dim not in (-1, c.student.dim() - 1):
            raise ArgumentError(
                f"DistillationLoss: {what} needs whole logits, classes last, and the teacher's are its top "
                "ones: take CachedTeacher without top="
            )

    def _of_rows(self, c: Comparison) -> dict[str, tuple[float, Tensor]]:
        """Compute the terms that take one row per prediction, as a token is."""
        ours, theirs, indices = c.rows()
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.decoupled and c.kind == "softmax":
            if indices is None:
                raise ArgumentError("DistillationLoss: decoupled needs targets that are class indices")
            value = decoupled_loss(ours, theirs, indices, temperature=self.temperature)
            terms["decoupled"] = (self.decoupled, value)
        if self.correlation and c.kind == "softmax":
            value = correlation_loss(ours, theirs, temperature=self.temperature)
            terms["correlation"] = (self.correlation, value)
        if self.relational:
            terms["relational"] = (self.relational, relational_loss(ours, theirs))
        if not len(ours):
            # Means over no rows are NaN.
            return {name: (weight, nothing(ours)) for name, (weight, _) in terms.items()}
        return terms

    def _of_features(
        self, features: Features, compared: Sequence[Comparison], mask: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Compute the terms of the hinted features."""
        if len(features) != len(self.hints):
            raise ArgumentError(
                f"DistillationLoss: {len(self.hints)} hints, {len(features)} pairs of features; run both "
                "networks inside watching(student, teacher) and pass what it yields, called"
            )
        masks = [] if mask is None else [mask.bool()]
        if len(compared) == 1 and compared[0].counted_positions is not None:
            masks.append(compared[0].counted_positions)
        counted = [counted_in(student, masks) for student, _ in features]
        total = sum(hint.weight for hint in self.hints)
        terms: dict[str, tuple[float, Tensor]] = {}
        for name, loss in (("hint", hint_loss), ("attention", attention_loss)):
            if weight := getattr(self, name):
                values = zip(self.hints, features, counted, strict=True)
                of_each = [hint.weight / total * loss(*pair, c) for hint, pair, c in values]
                terms[name] = (weight, torch.stack(of_each).sum())
        return terms

    def watching(self, student: nn.Module, teacher: nn.Module) -> AbstractContextManager[FeatureTap]:
        """Record the hinted modules' outputs while both networks run; the hooks go when the block ends."""
        return tapped(self.hints, student, teacher)
