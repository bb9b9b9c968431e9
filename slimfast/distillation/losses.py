"""What a student is trained on: a weighted sum of losses towards the teacher, the labels and its features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimfast.distillation.output_losses import (
    attention_loss,
    correlation_loss,
    decoupled_loss,
    relational_loss,
)
from slimfast.errors import ArgumentError, ArgumentTypeError
from slimfast.pruning.manifests import manifest

Features: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""One (student feature, teacher feature) pair per hint, of the same shape, channels in dim 1."""

_OF_FEATURES = ("hint", "attention")
_WEIGHTS = ("soft", "hard", "decoupled", "correlation", "relational", *_OF_FEATURES)

# Modules whose channels are their output's last dim; convolutions, batch and group norms have them in dim 1.
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)
_CHANNELS_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float, class_dim: int = -1) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over all but the class dim; a scalar.

    Both are logits of one shape. T^2 keeps the gradient's size independent of T (Hinton, Vinyals and Dean
    2015, "Distilling the knowledge in a neural network", section 2). Computed in float32 or wider.
    """
    log_p = functional.log_softmax(_wide(teacher) / temperature, dim=class_dim)
    log_q = functional.log_softmax(_wide(student) / temperature, dim=class_dim)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=class_dim)
    return divergence.mean() * temperature**2


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of the squared error divided by the teacher's variance in that channel; a scalar.

    Both (N, C, ...) and already aligned. The hint of Romero et al. 2015 ("FitNets") without its regressor,
    and in units of each channel's own spread: 0 is equal, 1 is as good as the channel's mean. A channel
    that hardly varies in this batch is measured against a hundredth of the average variance instead of its
    own.
    """
    student, teacher = _wide(student), _wide(teacher)
    others = [dim for dim in range(teacher.dim()) if dim != 1]
    error = (student - teacher).square().mean(dim=others)
    variance = teacher.var(dim=others, correction=0)
    floor = (0.01 * variance.mean()).clamp(min=torch.finfo(variance.dtype).tiny)
    return (error / variance.maximum(floor)).mean()


@dataclass(frozen=True, slots=True)
class Hint:
    """Match the output of module ``module``: student channel j with teacher channel ``keep[j]`` (None: all).

    ``dim`` is the channel dim of that output. :func:`aligned_hints` makes these for a pruned network.
    """

    module: str
    keep: tuple[int, ...] | None = None
    dim: int = 1


def aligned_hints(student: nn.Module, modules: Iterable[str]) -> tuple[Hint, ...]:
    """Hints for these modules of a network made by ``prune_channels``, aligned by what it kept.

    Each name is a module with a weight (linear, convolution, norm): its output channels are its weight's
    surviving ones. For other modules write the :class:`Hint` itself.

    Raises:
        ValueError: no module of that name, or one whose output channels its weight does not name.
    """
    keeps = manifest(student).keeps
    known = dict(student.named_modules())
    hints = []
    for name in modules:
        if name not in known:
            raise ArgumentError(f"aligned_hints: the student has no module {name!r}")
        module = known[name]
        if (
            not isinstance(module, _CHANNELS_LAST + _CHANNELS_SECOND)
            or getattr(module, "weight", None) is None
        ):
            kind = type(module).__name__
            raise ArgumentError(
                f"aligned_hints: {name} is a {kind}: cannot tell its channels; write its Hint"
            )
        # A transposed convolution stores (in, out, ...), an embedding (entries, channels).
        weight_dim = 1 if getattr(module, "transposed", False) or isinstance(module, nn.Embedding) else 0
        keep = keeps.get(f"{name}.weight", {}).get(weight_dim)
        dim = -1 if isinstance(module, _CHANNELS_LAST) else 1
        hints.append(Hint(name, None if keep is None else tuple(int(unit) for unit in keep), dim))
    return tuple(hints)


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
            by_class = _wide(logits).movedim(self.class_dim, 1)
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

    @contextmanager
    def watching(self, student: nn.Module, teacher: nn.Module) -> Iterator[FeatureTap]:
        """Record the hinted modules' outputs while both networks run; the hooks go when the block ends."""
        tap = FeatureTap(self.hints)
        with ExitStack() as hooks:
            for index, hint in enumerate(self.hints):
                for side, model in (("student", student), ("teacher", teacher)):
                    try:
                        module = model.get_submodule(hint.module)
                    except AttributeError as error:
                        raise ArgumentError(
                            f"DistillationLoss: the {side} has no module {hint.module!r}"
                        ) from error
                    handle = module.register_forward_hook(tap.recorder(side, index))
                    hooks.callback(handle.remove)
            yield tap


class FeatureTap:
    """The latest outputs of the hinted modules; calling it gives them as aligned pairs and forgets them."""

    def __init__(self, hints: tuple[Hint, ...]) -> None:
        self._hints = hints
        self._seen: dict[tuple[str, int], Tensor] = {}

    def recorder(self, side: str, index: int) -> Any:
        """A forward hook that keeps the output of hint ``index`` on ``side`` ("student" or "teacher")."""

        def record(module: nn.Module, args: Any, output: Any) -> None:
            self._seen[side, index] = output

        return record

    def __call__(self) -> Features:
        pairs = []
        for index, hint in enumerate(self._hints):
            for side in ("student", "teacher"):
                if not isinstance(self._seen.get((side, index)), Tensor):
                    raise ArgumentError(f"the {side} gave no tensor at {hint.module!r} since the last step")
            student, teacher = self._seen["student", index], self._seen["teacher", index].detach()
            if hint.keep is not None:
                teacher = teacher.index_select(hint.dim, torch.tensor(hint.keep, device=teacher.device))
            if student.shape != teacher.shape:
                got, wanted = tuple(student.shape), tuple(teacher.shape)
                raise ArgumentError(
                    f"hint {hint.module!r}: the student gives {got}, the teacher's kept part is {wanted}"
                )
            pairs.append((student.movedim(hint.dim, 1), teacher.movedim(hint.dim, 1)))
        self._seen.clear()
        return tuple(pairs)


def logits_of(output: Any) -> Tensor:
    """The logits in a network's output: the tensor itself, its ``logits`` entry, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ArgumentTypeError(
            f"expected logits, a tuple or a mapping with 'logits', got {type(output).__name__}"
        )
    return found


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where that is wider: 16 bits lose the small probabilities."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
