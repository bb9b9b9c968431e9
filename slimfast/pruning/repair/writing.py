"""Give a layer a repaired weight, also where its weight is computed from something else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from slimfast.errors import SlimfastError, one_line

# So far may what is computed again be from what was to be, in units of the precision.
_ROUNDING = 64.0


@torch.no_grad()
def write_weight(module: Any, value: Tensor) -> str | None:
    """Make ``value`` the weight that a layer computes with, in place.

    A parameter takes it. A parametrization is given what makes it, by its ``right_inverse``, and so are the
    masks of ``torch.nn.utils.prune`` and the weight norm of old.

    Returns:
        Why the layer cannot have this weight, in which case it has the one it had; None where it has it.
    """
    parameter = module._parameters.get("weight")
    if parameter is not None:
        parameter.copy_(value)
        return None
    made_of = _made_of(module)
    if (
        made_of is None
        or not made_of[1]
        or not all(isinstance(tensor, nn.Parameter) for tensor in made_of[1])
    ):
        return "its weight is computed in a way that has no known inverse"
    what, tensors, sources, compute = made_of
    before = [tensor.clone() for tensor in tensors]
    try:
        for tensor, source in zip(tensors, sources(value.to(tensors[0])), strict=True):
            tensor.copy_(source)
        why = _off(compute(), value)
    # the inverse is the user's code
    except Exception as error:
        why = one_line(error)
    if why is not None:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        return f"its weight is computed by {what}, which cannot make the repaired one: {why}"
    return None


_MadeOf = tuple[str, list[Tensor], Callable[[Tensor], Sequence[Tensor]], Callable[[], Tensor]]


def _made_of(module: Any) -> _MadeOf | None:
    """Find what a weight is computed by, the tensors it is made of, what they are for a given weight, and
    what they make."""
    made = getattr(module, "parametrizations", {})
    if "weight" in made:
        return _parametrized(made["weight"])
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return _normed(module, hook)
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return _masked(module, hook)
    return None


def _masked(module: Any, hook: BasePruningMethod) -> _MadeOf:
    """Find that of a mask, which a weight has to be 0 behind."""

    def compute() -> Tensor:
        made: Tensor = hook.apply_mask(module)  # type: ignore[no-untyped-call]
        return made

    return "a mask", [module.weight_orig], lambda value: [value], compute


def _normed(module: Any, hook: WeightNorm) -> _MadeOf:
    """Find that of the weight norm of old, which keeps a length and a direction."""
    tensors = [module.weight_g, module.weight_v]
    return (
        "a weight norm",
        tensors,
        lambda value: [torch.norm_except_dim(value, 2, hook.dim), value],
        lambda: hook.compute_weight(module),
    )


def _parametrized(chain: ParametrizationList) -> _MadeOf:
    """Find that of parametrizations, which stand one behind the other."""
    # what it inherits says that modules are iterated as tensors
    steps: list[Any] = list(chain._modules.values())
    tensors: list[Tensor] = list(chain.parameters(recurse=False))

    def sources(value: Any) -> Sequence[Tensor]:
        for one in reversed(steps):
            if not hasattr(one, "right_inverse"):
                raise SlimfastError(f"{type(one).__name__} has no right_inverse")
            value = one.right_inverse(value)
        return [value] if isinstance(value, Tensor) else list(value)

    def compute() -> Tensor:
        # in training mode a spectral norm would go on with its iteration
        made: Tensor = copy.deepcopy(chain).eval().forward()
        return made

    return " and ".join(type(one).__name__ for one in steps), tensors, sources, compute


def _off(made: Tensor, value: Tensor) -> str | None:
    """Say how far a weight is from the one that was to be; None where that is rounding."""
    value = value.to(made)
    size = float(value.abs().max()) if value.numel() else 0.0
    error = float((made - value).abs().max()) if value.numel() else 0.0
    if error <= _ROUNDING * torch.finfo(made.dtype).eps * size:
        return None
    return f"what it makes instead is off by {error / size:.2g} of its size" if size else "it is 0"
