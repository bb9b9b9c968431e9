"""Which loss an output gets: by its kind, which is given or found from the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from slimfast.distillation.counting import is_label
from slimfast.distillation.network_outputs import output_named
from slimfast.errors import ArgumentError

Kind: TypeAlias = Literal["softmax", "sigmoid", "mse", "smooth_l1", "cosine"]
KINDS: tuple[str, ...] = get_args(Kind)
_REMEDY = 'name it: DistillationLoss(outputs=(Output("NAME", "KIND"),))'


@dataclass(frozen=True, slots=True)
class Output:
    """Name an output to teach, as it stands in what the networks return, and the kind of its loss.

        DistillationLoss(outputs=(Output("logits", "sigmoid"), Output("boxes", "smooth_l1", weight=5.0)))

    The name is a key, an attribute or a position ("0"), joined with dots where they are nested; "" is a
    tensor alone, or the logits. ``weight`` multiplies the output's terms. ``class_dim`` None: the loss's own.
    ``labelled``: whether a single tensor of targets is this output's; None: if it fits.

    The kinds, each towards the teacher / towards the targets:

    - "softmax": divergence at the temperature / cross entropy. One class out of at least two.
    - "sigmoid": divergence of each logit at the temperature / binary cross entropy. Yes or no, each alone.
    - "mse", "smooth_l1": the values as they are. Regression, images.
    - "cosine": 1 - cosine along the class dim. Embeddings.
    """

    name: str = ""
    kind: Kind | None = None
    weight: float = 1.0
    class_dim: int | None = None
    labelled: bool | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ArgumentError(f"Output: kind must be one of {', '.join(KINDS)} or None, got {self.kind!r}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ArgumentError(f"Output: weight must be positive, got {self.weight}")


def settled_outputs(
    outputs: Sequence[Output], student: Any, targets: Any, class_dim: int | None, ignore_index: int
) -> tuple[Output, ...]:
    """Find from one batch what ``outputs`` were not given: kinds, class dims, whose the targets are.

    Without a kind, an output whose targets are

    - class indices, or rows of probabilities, is "softmax";
    - of its own shape and only 0 and 1 is "sigmoid";
    - of its own shape with other values is "mse".

    One without targets is "softmax" if it is the network's only one and has two classes or more, and "mse"
    otherwise, which is right for logits, too.

    ``class_dim`` None: of an output in whose dim 1 class indices fit, and not in its last dim, dim 1, as in
    segmentation; of others the last one.

    Raises:
        ValueError: targets that fit no output, or several; an output that can be several things.
    """
    tensors = {o.name: output_named(student, o.name) for o in outputs}
    placed = [
        replace(o, class_dim=_class_dim(o, tensors[o.name], _own(o, outputs, targets), class_dim))
        for o in outputs
    ]
    if isinstance(targets, Tensor):
        placed = _labelled(placed, tensors, targets, ignore_index)
    alone = len(placed) == 1
    return tuple(
        replace(o, kind=_found_kind(o, tensors[o.name], targets_for(o, placed, targets), ignore_index, alone))
        for o in placed
    )


def all_known(outputs: Sequence[Output]) -> bool:
    """Tell whether there are outputs, and of each all that a loss has to know."""
    return bool(outputs) and all(o.kind is not None and o.class_dim is not None for o in outputs)


def targets_for(output: Output, outputs: Sequence[Output], targets: Any) -> Tensor | None:
    """Find an output's targets: the tensor if it is the labelled one, or the entry of its name or place."""
    if isinstance(targets, Mapping):
        names = {o.name for o in outputs}
        if unknown := [str(name) for name in targets if name not in names]:
            raise ArgumentError(
                f"DistillationLoss: targets of {', '.join(unknown)}, but the outputs are {_names(outputs)}"
            )
        return targets.get(output.name)
    if isinstance(targets, (tuple, list)):
        if len(targets) != len(outputs):
            raise ArgumentError(
                f"DistillationLoss: {len(targets)} tensors of targets for the outputs {_names(outputs)}; "
                "pass a dict by their names"
            )
        found: Tensor | None = targets[list(outputs).index(output)]
        return found
    if targets is not None and all(o.labelled is None for o in outputs) and len(outputs) > 1:
        raise ArgumentError(
            "DistillationLoss: targets, but none on the first batch: it is not known which output they are of"
        )
    return targets if output.labelled or len(outputs) == 1 else None


def aligned(targets: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Bring targets into this shape if they have it but for dims of length 1 at the end, or give None."""
    if _stripped(targets.shape) != _stripped(shape):
        return None
    return targets.reshape(tuple(shape))


def positions_of(tensor: Tensor, class_dim: int) -> tuple[int, ...]:
    """Take the class dim out of an output's shape."""
    shape = list(tensor.shape)
    del shape[class_dim]
    return tuple(shape)


def classes_of(tensor: Tensor, class_dim: int) -> int:
    """Count the classes of an output; one of (N,) has one value a sample."""
    return tensor.shape[class_dim] if tensor.dim() > 1 else 1


def _own(output: Output, outputs: Sequence[Output], targets: Any) -> Any:
    """Find the targets that may be an output's, before it is known whose they are."""
    if isinstance(targets, Mapping):
        return targets.get(output.name)
    if isinstance(targets, (tuple, list)):
        return targets[list(outputs).index(output)] if len(targets) == len(outputs) else None
    return targets


def _class_dim(output: Output, tensor: Tensor, targets: Any, given: int | None) -> int:
    """Find the dim of an output's classes."""
    if output.class_dim is not None or given is not None:
        return given if output.class_dim is None else output.class_dim  # type: ignore[return-value]
    if tensor.dim() < 3 or not isinstance(targets, Tensor) or targets.is_floating_point():
        return -1
    fits = {dim: aligned(targets, positions_of(tensor, dim)) is not None for dim in (1, -1)}
    return 1 if fits[1] and not fits[-1] else -1


def _labelled(
    outputs: list[Output], tensors: Mapping[str, Tensor], targets: Tensor, ignore_index: int
) -> list[Output]:
    """Tell each output whether the tensor of targets is its own."""
    said = [o for o in outputs if o.labelled]
    open_ones = [o for o in outputs if o.labelled is None]
    fitting = said or [o for o in open_ones if _fits(o, tensors[o.name], targets, ignore_index)]
    if len(outputs) == 1:
        fitting = outputs if outputs[0].labelled is not False else []
    elif any(o.name in ("", "logits") for o in fitting):
        fitting = [o for o in fitting if o.name in ("", "logits")]
    shapes = ", ".join(f"{o.name} {tuple(tensors[o.name].shape)}" for o in outputs)
    if len(fitting) > 1 or not (fitting or len(outputs) == 1):
        which = "several" if fitting else "none"
        raise ArgumentError(
            f"DistillationLoss: targets {tuple(targets.shape)} fit {which} of the outputs {shapes}; pass a "
            'dict of targets by name, or outputs=(Output("NAME", labelled=True), ...)'
        )
    return [replace(o, labelled=o in fitting) for o in outputs]


def _fits(output: Output, tensor: Tensor, targets: Tensor, ignore_index: int) -> bool:
    """Tell whether these may be the output's targets, by their shape and, of class indices, the largest."""
    assert output.class_dim is not None
    if _is_index(targets, tensor, output.class_dim) and output.kind in (None, "softmax"):
        labels = targets[is_label(targets, ignore_index)]
        return not labels.numel() or int(labels.max()) < classes_of(tensor, output.class_dim)
    return aligned(targets, tensor.shape) is not None


def _found_kind(
    output: Output, tensor: Tensor, targets: Tensor | None, ignore_index: int, alone: bool
) -> Kind:
    """Find the output's kind if it is not given, and see that it can teach anything."""
    assert output.class_dim is not None
    where = f"DistillationLoss: output {output.name or 'logits'} {tuple(tensor.shape)}"
    classes = classes_of(tensor, output.class_dim)
    if output.kind is not None:
        if output.kind in ("softmax", "cosine") and classes == 1:
            raise ArgumentError(
                f'{where}: "{output.kind}" of one value is a constant; use "sigmoid" or "mse"'
            )
        return output.kind
    if targets is None:
        if classes == 1 or not alone:
            return "mse"
        if tensor.dim() > 3 and output.class_dim in (-1, tensor.dim() - 1):
            raise ArgumentError(
                f"{where}: without targets it may hold classes or be an image: {_REMEDY}, or pass class_dim=1"
            )
        return "softmax"
    if _is_index(targets, tensor, output.class_dim):
        return "softmax"
    own = aligned(targets, tensor.shape)
    if own is None:
        got = f"{tuple(targets.shape)} {str(targets.dtype).removeprefix('torch.')}"
        indices = f"class indices {positions_of(tensor, output.class_dim)} or " if classes > 1 else ""
        fitting = [d for d in range(1, tensor.dim()) if positions_of(tensor, d) == tuple(targets.shape)]
        hint = f"; pass class_dim={fitting[0]} if that is where the classes are" if fitting else ""
        raise ArgumentError(f"{where}: targets are {got}, expected {indices}values of its own shape{hint}")
    return _kind_of_values(own, output.class_dim, classes, ignore_index, where)


def _kind_of_values(targets: Tensor, class_dim: int, classes: int, ignore_index: int, where: str) -> Kind:
    labels = targets[is_label(targets, ignore_index)].to(torch.float64)
    if targets.is_floating_point() and classes > 1 and labels.numel() == targets.numel():
        rows = targets.to(torch.float64).sum(class_dim)
        # Sixteen bits round each share by up to 2^-9 of it.
        if bool((labels >= 0).all()) and bool(((rows - 1).abs() < 0.01).all()):
            return "softmax"
    if bool(((labels == 0) | (labels == 1)).all()):
        return "sigmoid"
    if not targets.is_floating_point():
        raise ArgumentError(f"{where}: integer targets of its own shape must be 0 or 1; {_REMEDY}")
    return "mse"


def _is_index(targets: Tensor, tensor: Tensor, class_dim: int) -> bool:
    if targets.is_floating_point() or classes_of(tensor, class_dim) == 1:
        return False
    return aligned(targets, positions_of(tensor, class_dim)) is not None


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _names(outputs: Sequence[Output]) -> str:
    return ", ".join(o.name or "logits" for o in outputs)
