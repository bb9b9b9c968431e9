"""Copies of a module in which some tensors are replaced, made without copying the ones they replace."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from slimfast.errors import SlimfastError


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a module, each once, under the first of its names; parameters first."""
    return {name: tensor for _, name, tensor in _tensors(model, remove_duplicate=True)}


def aliases(model: nn.Module) -> dict[str, str]:
    """Each further name of a shared (tied) parameter or buffer, and the first name of the same tensor."""
    first: dict[int, str] = {}
    further: dict[str, str] = {}
    for identity, name, _ in _tensors(model, remove_duplicate=False):
        if identity in first:
            further[name] = first[identity]
        else:
            first[identity] = name
    return further


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy of ``model`` whose parameters and buffers of these names are ``tensors``, wherever they
    occur.

    The replaced tensors are not copied, and a tied one is replaced under all of its names. A replacement
    takes the ``requires_grad`` and the class of the parameter it stands for, and may share memory with
    anything; what is not named is copied as ``copy.deepcopy`` does it. Raises :class:`SlimfastError` for a
    module that cannot be copied.
    """
    present = {name: tensor for _, name, tensor in _tensors(model, remove_duplicate=False)}
    memo: dict[int, object] = {}
    for name, tensor in tensors.items():
        old = present[name]
        if isinstance(old, nn.Parameter):
            memo[id(old)] = type(old)(tensor.detach(), requires_grad=old.requires_grad)
        else:
            memo[id(old)] = tensor.detach().requires_grad_(old.requires_grad)
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise SlimfastError(
            f"{type(model).__name__} cannot be copied: {' '.join(str(error).split())}"
        ) from error


def _tensors(model: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[int, str, Tensor]]:
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        yield id(parameter), name, parameter
    for name, buffer in model.named_buffers(remove_duplicate=remove_duplicate):
        yield id(buffer), name, buffer
