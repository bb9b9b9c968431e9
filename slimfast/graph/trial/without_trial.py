"""Deciding whether the trial cut can be skipped.

A trial finds the Python numbers that must follow a width. A forward can make such a number only of a length
it saw or of an attribute that a cut changes, and it shows as a number that an operation is given. So
there is nothing to find where the forward saw no length and every number is one of these:

- what one of PyTorch's own layers passes on: of its attributes a cut changes none but those that follow the
  layer's tensors, and ``groups`` and their like, which have their constants' names;
- what the running module holds under the argument's own name (``eps``), a default or the place of an axis;
- a size that PyTorch computed from other sizes, to flatten.

The operations must be among those of which the prediction is beyond doubt. Anything else takes the trial. The
thin network is recorded and compared in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from slimfast.graph.channel_graph import Axis, ChannelGraph
from slimfast.graph.recording.attributes import AttributeKey
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.op_registry import entry_of
from slimfast.graph.trial.candidates import followed_by_name

# Arguments that number axes.
_PLACES = frozenset({"dim", "dims", "dim0", "dim1"})
# Arguments that may be numbers, and are these unless something else is asked for.
_DEFAULTS = {"alpha": 1}


def attributes_without_trial(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], recording: Recording
) -> dict[AttributeKey, Axis] | None:
    """Find the attributes that must follow the widths; None where that takes a trial cut."""
    if recording.saw_lengths or recording.tensor_mode != "meta":
        return None
    own = {path: _is_own_layer(module) for path, module in modules.items()}
    for call in recording.calls:
        entry = entry_of(call.op)
        # A reshape is certain where PyTorch computed its sizes.
        if entry.reshapes and call.sizes_computed:
            continue
        if not entry.certain:
            return None
        if not (own[call.module] or _accounted(call, modules[call.module])):
            return None
    computed = {i for i, call in enumerate(recording.calls) if call.sizes_computed}
    return followed_by_name(graph, modules, computed)


def _is_own_layer(module: nn.Module) -> bool:
    """Say whether a module runs the forward that PyTorch wrote for its class and nothing else, such as hooks
    of children.
    """
    kind = type(module)
    homes = (kind.__module__, getattr(kind.forward, "__module__", ""))
    alone = not module._modules and "forward" not in vars(module)
    return alone and all(home.startswith("torch.nn.modules.") for home in homes)


def _accounted(call: Call, module: nn.Module) -> bool:
    """Say whether every number of a call has an origin that no width changes, or that has its name."""
    for name, value in call.arguments.items():
        if name in _PLACES or _is_no_number(value):
            continue
        if name in _DEFAULTS and value == _DEFAULTS[name]:
            continue
        if not _same_numbers(value, getattr(module, name, None)):
            return False
    return True


def _is_no_number(value: Any) -> bool:
    """Say whether an argument holds no numbers."""
    if isinstance(value, list):
        return all(map(_is_no_number, value))
    return value is None or isinstance(value, (bool, str, Ref)) or not isinstance(value, (int, float))


def _same_numbers(value: Any, held: Any) -> bool:
    """Say whether a module holds these numbers, or one for all of them."""
    if isinstance(value, list) and isinstance(held, (tuple, list)):
        return value == list(held)
    return type(value) is type(held) and bool(value == held)
