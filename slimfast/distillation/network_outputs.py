"""What a network returns: its outputs by name, and the logits among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from slimfast.distillation.top_logits import TopLogits
from slimfast.errors import ArgumentError, ArgumentTypeError

# What Hugging Face's networks return beside what they are asked for.
_BY_PRODUCTS = ("loss", "past_key_values", "cache", "hidden_states", "attentions", "router_logits", "mems")
_LAST_STATE = "last_hidden_state"


def logits_of(output: Any) -> Tensor:
    """Find the logits in a network's output: it itself, its ``logits`` entry, or the first of a tuple."""
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


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Name the floating tensors in a network's output by keys, attributes or positions, joined with dots.

    A tensor alone has the name "". Left out are scalars and by-products: entries named ``loss``,
    ``hidden_states``, ``attentions``, ``past_key_values``, ``cache``, ``router_logits`` or ``mems``, whatever
    stands before such a name, and ``last_hidden_state`` beside logits.
    """
    found = dict(_leaves(output, (), set()))
    if any("logits" in name for name in found):
        found = {name: value for name, value in found.items() if not name.endswith(_LAST_STATE)}
    return found


def common_outputs(student: Any, teacher: Any) -> tuple[str, ...]:
    """List the outputs that both networks give; "", the logits, where one gives a tensor alone.

    Of a ``teacher`` None, the student's.
    """
    if isinstance(student, Tensor) or isinstance(teacher, Tensor | TopLogits):
        return ("",)
    ours = named_outputs(student)
    theirs = ours if teacher is None else named_outputs(teacher)
    return tuple(name for name in theirs if name in ours) or ("",)


def output_named(output: Any, name: str) -> Tensor:
    """Find the tensor of this name in a network's output; "" are the logits."""
    if not name:
        return logits_of(output)
    found = named_outputs(output)
    if name not in found:
        got = ", ".join(found) or type(output).__name__
        raise ArgumentError(f"DistillationLoss: expected an output {name!r}, got {got}")
    return found[name]


def teacher_output(output: Any, name: str) -> Tensor | TopLogits:
    """Find a teacher's output of this name: a tensor, or the top of logits where no more of them is kept."""
    if isinstance(output, TopLogits):
        if name not in ("", "logits"):
            raise ArgumentError(f"DistillationLoss: expected an output {name!r}, got top logits alone")
        return output
    return output_named(output, name)


def _leaves(value: Any, path: tuple[str, ...], above: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dim():
            yield ".".join(path), value
        return
    # An object may hold itself.
    if id(value) in above:
        return
    for name, entry in _entries(value):
        if not any(name == other or name.endswith(f"_{other}") for other in _BY_PRODUCTS):
            yield from _leaves(entry, (*path, name), above | {id(value)})


def _entries(value: Any) -> list[tuple[str, Any]]:
    """List the parts of an output by name: a mapping's, a sequence's, a named tuple's, an object's."""
    if isinstance(value, Mapping):
        return [(str(name), entry) for name, entry in value.items()]
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        return [(str(name), entry) for name, entry in zip(names, value, strict=True)]
    if value is None or isinstance(value, (nn.Module, type, str, bytes)):
        return []
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [name for name in [*slots, *getattr(value, "__dict__", {})] if not name.startswith("_")]
    return [(name, getattr(value, name, None)) for name in names]
