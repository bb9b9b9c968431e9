"""Hints: outputs of modules inside the student that are compared with those inside the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

    ``dim`` is the channel dim of that output. :func:`aligned_hints` makes these for a pruned network.
    """

    module: str
    keep: tuple[int, ...] | None = None
    dim: int = 1


def aligned_hints(student: nn.Module, modules: Iterable[str]) -> tuple[Hint, ...]:
    """Make hints for these modules of a network made by ``prune_channels``, aligned by what it kept.

    Args:
        student: The thin network.
        modules: Names of modules with a weight (linear, convolution, norm): the output channels of each are
            its weight's surviving ones. For other modules write the :class:`Hint` itself.

    Returns:
        One hint for each module.

    Raises:
        ValueError: For a name that no module has, or a module whose output channels its weight does not name.

    Example:
        loss = DistillationLoss(hints=aligned_hints(thin, ["layer1.0.conv1", "layer2.0.conv1"]))
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
        keep = keeps.get(_holder(name, module, student), {}).get(weight_dim)
        dim = -1 if isinstance(module, _CHANNELS_LAST) else 1
        hints.append(Hint(name, None if keep is None else tuple(int(unit) for unit in keep), dim))
    return tuple(hints)


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

    def recorder(self, side: str, index: int) -> Any:
        """Make a hook that keeps the output of hint ``index`` on ``side`` ("student" or "teacher")."""

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
