"""Hints: outputs of modules inside the student that are compared with those inside the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.distillation.counting import nothing
from slimfast.distillation.output_losses import widened
from slimfast.errors import ArgumentError
from slimfast.graph.recording.module_copies import aliases, named_tensors
from slimfast.pruning.manifests import manifest

Features: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""One (student feature, teacher feature) pair per hint, of the same shape, channels in dim 1."""

# Modules whose channels are their output's last dim; convolutions, batch and group norms have them in dim 1.
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)
_CHANNELS_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)


@dataclass(frozen=True, slots=True)
class Hint:
    """Match the output of module ``module``: student channel j with teacher channel ``keep[j]`` (None: all).

    ``dim`` is the channel dim of that output, ``weight`` what this hint counts beside the others: their loss
    is the weighted mean. :func:`aligned_hints` makes these for a pruned network.
    """

    module: str
    keep: tuple[int, ...] | None = None
    dim: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ArgumentError(f"Hint {self.module}: the weight must be positive, got {self.weight}")


def aligned_hints(student: nn.Module, modules: Iterable[str], *, by_cut: bool = False) -> tuple[Hint, ...]:
    """Make hints for these modules of a network made by ``prune_channels``, aligned by what it kept.

    Args:
        student: The thin network.
        modules: Names of modules with a weight (linear, convolution, norm), or globs that match some: the
            output channels of each are its weight's surviving ones. Of what a glob matches, modules without
            such a weight are passed over; for those write the :class:`Hint` itself.
        by_cut: Weigh each hint by the share of its weight's numbers that was cut, inputs and outputs alike,
            so that the training looks where most was lost. What was not cut gets no hint.

    Returns:
        One hint for each module, in the order of ``modules``; each module once.

    Raises:
        ValueError: For a name that no module has, a module whose output channels its weight does not name,
            a glob that matches none, or ``by_cut`` where nothing was cut.

    Example:
        loss = DistillationLoss(hints=aligned_hints(thin, ["layer1.*.conv2", "layer2.0.conv1"], by_cut=True))
    """
    made = manifest(student)
    if made.dropped:
        raise ArgumentError(
            f"aligned_hints: expected a network with all layers of its teacher, got one without "
            f"{made.dropped[0].name}: a hint has one name for both; leave hints out"
        )
    hints = []
    for name, module in _named(student, modules).items():
        # A transposed convolution stores (in, out, ...), an embedding (entries, channels).
        weight_dim = 1 if getattr(module, "transposed", False) or isinstance(module, nn.Embedding) else 0
        holder = _holder(name, module, student)
        keep = made.keeps.get(holder, {}).get(weight_dim)
        kept = None if keep is None else tuple(int(unit) for unit in keep)
        wide = made.shapes_before.get(holder, tuple(module.weight.shape))
        lost = 1.0 - module.weight.numel() / math.prod(wide)
        if by_cut and lost <= 0.0:
            continue
        dim = -1 if isinstance(module, _CHANNELS_LAST) else 1
        hints.append(Hint(name, kept, dim, lost if by_cut else 1.0))
    if by_cut and not hints:
        raise ArgumentError("aligned_hints: by_cut, but nothing of these modules was cut; leave by_cut out")
    return tuple(hints)


def _named(student: nn.Module, modules: Iterable[str]) -> dict[str, Any]:
    """Find the modules of these names and globs, each with a weight that names its output channels."""
    known = dict(student.named_modules())
    found: dict[str, Any] = {}
    for name in modules:
        if name in known:
            if not _has_channels(known[name]):
                kind = type(known[name]).__name__
                raise ArgumentError(
                    f"aligned_hints: {name} is a {kind}: cannot tell its channels; write its Hint"
                )
            found[name] = known[name]
            continue
        matched = {n: m for n, m in known.items() if fnmatchcase(n, name) and _has_channels(m)}
        if not matched and any(sign in name for sign in "*?["):
            raise ArgumentError(f"aligned_hints: {name!r} matches no module with a weight of channels")
        if not matched:
            raise ArgumentError(f"aligned_hints: the student has no module {name!r}")
        found |= matched
    return found


def _has_channels(module: nn.Module) -> bool:
    """Tell whether the module's weight names the channels of its output."""
    known = isinstance(module, _CHANNELS_LAST + _CHANNELS_SECOND)
    return known and getattr(module, "weight", None) is not None


def _holder(name: str, module: nn.Module, student: nn.Module) -> str:
    """Name the tensor that holds a module's weight, slice for slice; ``ArgumentError`` where none does.

    It is the weight by its first name, or what a mask, a norm or another parametrization makes the weight of.
    """
    weight, tensors = f"{name}.weight", named_tensors(student)
    first = aliases(student).get(weight, weight)
    if first in tensors:
        return first
    shape: torch.Size = module.weight.shape  # type: ignore[assignment]
    for tensor, held in tensors.items():
        if tensor.startswith((f"{weight}_", f"{name}.parametrizations.weight.")) and held.shape == shape:
            return tensor
    raise ArgumentError(
        f"aligned_hints: {name}: expected a tensor of its weight's shape {tuple(shape)} that it is made of, "
        "got none; write its Hint"
    )


def hint_loss(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """Compare features: the mean over channels of squared error over the teacher's variance; a scalar.

    Both (N, C, ...) and already aligned; ``counted``, (N, ...), is true at the positions to compare. The hint
    of Romero et al. 2015 ("FitNets") without its regressor, and in units of each channel's own spread: 0 is
    equal, 1 is as good as the channel's mean. A channel that hardly varies in this batch is measured against
    a hundredth of the average variance instead of its own.
    """
    student, teacher = widened(student), widened(teacher)
    if counted is not None:
        if not bool(counted.any()):
            return nothing(student)
        student, teacher = (x.movedim(1, -1)[counted] for x in (student, teacher))
    others = [dim for dim in range(teacher.dim()) if dim != 1]
    error = (student - teacher).square().mean(dim=others)
    variance = teacher.var(dim=others, correction=0)
    floor = (0.01 * variance.mean()).clamp(min=torch.finfo(variance.dtype).tiny)
    return (error / variance.maximum(floor)).mean()


@contextmanager
def tapped(hints: tuple[Hint, ...], student: nn.Module, teacher: nn.Module) -> Iterator[FeatureTap]:
    """Record the hinted modules' outputs while both networks run; the hooks go when the block ends."""
    tap = FeatureTap(hints)
    with ExitStack() as hooks:
        for index, hint in enumerate(hints):
            for side, model in (("student", student), ("teacher", teacher)):
                try:
                    module = model.get_submodule(hint.module)
                except AttributeError as error:
                    raise ArgumentError(
                        f"DistillationLoss: the {side} has no module {hint.module!r}"
                    ) from error
                hooks.callback(module.register_forward_hook(tap.recorder(side, index)).remove)
        yield tap


class FeatureTap:
    """Keep the latest outputs of the hinted modules; a call gives them as aligned pairs and forgets them."""

    def __init__(self, hints: tuple[Hint, ...]) -> None:
        self._hints = hints
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._modules: dict[int, nn.Module] = {}

    def recorder(self, side: str, index: int) -> Any:
        """Make a hook that keeps the output of hint ``index`` on ``side`` ("student" or "teacher")."""

        def record(module: nn.Module, args: Any, output: Any) -> None:
            self._seen[side, index] = output
            if side == "student":
                self._modules[index] = module

        return record

    def __call__(self) -> Features:
        pairs = []
        for index, hint in enumerate(self._hints):
            for side in ("student", "teacher"):
                if not isinstance(self._seen.get((side, index)), Tensor):
                    raise ArgumentError(f"the {side} gave no tensor at {hint.module!r} since the last step")
            student, teacher = self._seen["student", index], self._seen["teacher", index].detach()
            learns = any(p.requires_grad for p in self._modules[index].parameters())
            if learns and torch.is_grad_enabled() and not student.requires_grad:
                raise ArgumentError(
                    f"hint {hint.module!r}: its output has no gradient and would teach nothing; where the "
                    f"student runs it under torch.utils.checkpoint, pass use_reentrant=False there"
                )
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
