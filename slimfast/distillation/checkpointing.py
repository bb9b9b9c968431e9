"""Gradient checkpointing of a student: activations inside its blocks are computed again, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from slimfast.errors import ArgumentTypeError, one_line

# How transformers calls it, newest first.
_VERBS = ("activation_checkpointing", "gradient_checkpointing")
_STATE = ("gradient_checkpointing", "_gradient_checkpointing_func")
# The hooks that transformers puts on embeddings, so that inputs of frozen layers have gradients.
_HOOKS = ("_require_grads_hooks", "_require_grads_hook")


@contextmanager
def checkpointed(student: nn.Module, wanted: bool) -> Iterator[None]:
    """Let ``student`` checkpoint its blocks inside the block, if that is ``wanted``; then as it was before.

    It does so itself (``gradient_checkpointing_enable`` of transformers), as its class knows its blocks.
    Raises :class:`ArgumentTypeError` for a network that does not.
    """
    if not wanted:
        yield
        return
    kind = type(student).__name__
    verb = next((verb for verb in _VERBS if callable(getattr(student, f"{verb}_enable", None))), None)
    if verb is None:
        raise ArgumentTypeError(
            f"distill: gradient_checkpointing needs a student that has gradient_checkpointing_enable, as "
            f"those of transformers, got {kind}; leave it out, or checkpoint inside its forward"
        )
    before = [
        (module, {name: vars(module)[name] for name in _STATE if name in vars(module)})
        for module in student.modules()
    ]
    hooked = any(vars(student).get(name) for name in _HOOKS)
    # Blocks that are run again in another graph leave hooks and frozen inputs as they are.
    options: dict[str, Any] = {f"{verb}_kwargs": {"use_reentrant": False}}
    try:
        getattr(student, f"{verb}_enable")(**options)
    except ValueError as error:
        raise ArgumentTypeError(
            f"distill: gradient_checkpointing is not for {kind}: {one_line(error)}"
        ) from error
    try:
        yield
    finally:
        if not hooked and callable(unhook := getattr(student, "disable_input_require_grads", None)):
            unhook()
            for name in _HOOKS:
                vars(student).pop(name, None)
        for module, state in before:
            for attribute in _STATE:
                if attribute in state:
                    setattr(module, attribute, state[attribute])
                elif attribute in vars(module):
                    delattr(module, attribute)
