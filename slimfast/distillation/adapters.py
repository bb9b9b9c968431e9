"""Adapters of ``peft`` beside a student's layers: they are trained in its weights' place, and merged in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from slimfast.distillation.sharding import is_sharded
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line


@contextmanager
def adapted(student: nn.Module, adapter: Any) -> Iterator[Callable[[], None]]:
    """Put the adapters that ``adapter``, a configuration of peft, describes into ``student``; None: nothing.

    Yields the function that adds what they have learned to the student's weights. After the block the student
    is made of its own modules again, with that or, where it was not called, as before, and trains the
    parameters that it trained before (Hu et al., ICLR 2022, "LoRA: Low-Rank Adaptation of Large Language
    Models").
    """
    if adapter is None:
        yield _nothing
        return
    peft = _peft(adapter)
    if is_sharded(student):
        raise SlimfastError(
            "distill: adapter= is for a student that is whole on every process, got a sharded one"
        )
    attributes = set(vars(student))
    trained = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    try:
        with warnings.catch_warnings():
            # Of how peft asks transformers whether it checkpoints, which is not for a user to mend.
            warnings.simplefilter("ignore", FutureWarning)
            tuner = peft.get_peft_model(student, adapter)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ArgumentTypeError(
            f"distill: adapter: peft cannot put it into {type(student).__name__}: {one_line(error)}"
        ) from error
    merged = False

    def merge() -> None:
        nonlocal merged
        merged = True
        tuner.merge_and_unload(safe_merge=True)

    try:
        _check_ties(student, peft)
        yield merge
    finally:
        if not merged:
            tuner.unload()
        for name in set(vars(student)) - attributes:
            delattr(student, name)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(trained[name])


def _peft(adapter: Any) -> Any:
    """Import peft, and see that ``adapter`` is a configuration that can be merged."""
    try:
        import peft
    except ImportError as error:
        raise SlimfastError("distill: adapter= needs peft: install the extra 'slimfast[lora]'") from error
    if not isinstance(adapter, peft.PeftConfig):
        raise ArgumentTypeError(
            f"distill: adapter must be a configuration of peft, as LoraConfig(target_modules=[...]), got "
            f"{type(adapter).__name__}"
        )
    if adapter.peft_type != "LORA":
        raise ArgumentTypeError(
            f"distill: adapter must be a LoraConfig of peft, got {type(adapter).__name__}"
        )
    return peft


def described(adapter: Any) -> str | None:
    """Write down what of an adapter's configuration decides a training; None where there is none."""
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    return None if adapter is None else ", ".join(f"{name} {getattr(adapter, name, None)}" for name in names)


def _check_ties(student: nn.Module, peft: Any) -> None:
    """Refuse adapters of weights that are another module's too: merged they would change that one."""
    holders: dict[int, list[str]] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for path, module in student.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            base: Any = module.get_base_layer()
            names = holders[id(base.weight)]
            if len(names) > 1:
                other = next(name for name in names if not name.startswith(f"{path}."))
                raise ArgumentTypeError(
                    f"distill: adapter: {path} has its weight from {other}, which would change with it; "
                    f"leave it out of target_modules"
                )


def _nothing() -> None:
    """Merge no adapters."""
