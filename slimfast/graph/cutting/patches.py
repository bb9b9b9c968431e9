"""The Python attributes that a cut changes: of PyTorch's own layers, and those that a trial has found."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Attribute
from slimfast.graph.cutting.recurrent_layers import recurrent_attributes
from slimfast.graph.recording.network import Network

Shape: TypeAlias = tuple[int, ...]
# What a patched attribute may hold: an int, or a tuple or list of ints among other plain values.
Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Patch:
    """An attribute of a module that held ``before`` and must hold ``after``: ints, or tuples where it is a
    sequence.

    ``attribute`` is ``config.name`` for one of an object that the module holds, ``feature_info.0.num_chs``
    for a place in lists and tables; what is held is then copied first, because modules share it.
    """

    module: str
    attribute: str
    before: Value
    after: Value


def patches_of(
    network: Network, shapes: Mapping[str, Shape], lengths: Iterable[tuple[Attribute, int]]
) -> tuple[Patch, ...]:
    """List the patches that these shapes of tensors and lengths of attributes call for, by module and name.

    The attributes of PyTorch's own layers follow from the shapes of their tensors.
    """
    values: dict[tuple[str, str], list[Value]] = {}
    for attribute, length in lengths:
        _set(values, network.modules[attribute.module], attribute, length)
    for prefix, own in _shapes_by_module(network, shapes).items():
        module = network.modules[prefix]
        groups = values.get((prefix, "groups"), [getattr(module, "groups", 1)])[-1]
        for name, value in standard_attributes(module, own, groups).items():
            values[prefix, name] = [read_attribute(module, name), value]
    return tuple(
        Patch(module, name, before, after)
        for (module, name), (before, after) in sorted(values.items())
        if before != after
    )


def standard_attributes(module: nn.Module, shapes: Mapping[str, Shape], groups: int = 1) -> dict[str, Value]:
    """Find what the attributes of one of PyTorch's own layers must be for tensors of these shapes."""
    weight = shapes.get("weight", ())
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and weight:
        return {"in_channels": weight[0], "out_channels": weight[1] * groups}
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        return {"out_channels": weight[0], "in_channels": weight[1] * groups}
    if isinstance(module, nn.Linear) and weight:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.Bilinear) and weight:
        return {"out_features": weight[0], "in1_features": weight[1], "in2_features": weight[2]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and weight:
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": (weight or shapes["running_mean"])[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight:
        return {"normalized_shape": weight}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.PReLU) and weight:
        return {"num_parameters": weight[0]}
    return recurrent_attributes(module, shapes)


def apply_patches(model: nn.Module, patches: Iterable[Patch]) -> None:
    """Set the attributes of ``model`` in place.

    Raises :class:`SlimfastError` where one does not hold its ``before``.
    """
    for patch in patches:
        module = model.get_submodule(patch.module)
        got = read_attribute(module, patch.attribute)
        if got != patch.before:
            where = patch.module or type(model).__name__
            raise SlimfastError(f"{where}: expected {patch.attribute} = {patch.before}, got {got}")
        _write_attribute(module, patch.attribute, patch.after)


def read_attribute(module: nn.Module, name: str) -> Value:
    """Read ``name`` or a place inside what it holds (:class:`Patch`), sequences as tuples; None for none."""
    owner: Any = module
    for part in name.split("."):
        owner = _part_of(owner, part)
    return plain(owner)


def _part_of(owner: Any, part: str) -> Any:
    """Take an item of a table or a sequence, or an attribute of anything else; None where there is none."""
    if isinstance(owner, Mapping):
        return owner.get(part)
    if isinstance(owner, (tuple, list)) and not hasattr(owner, "_fields"):
        return owner[int(part)] if part.isdigit() and int(part) < len(owner) else None
    return getattr(owner, part, None)


def plain(value: Any) -> Value:
    """Make tuples of lists and ``torch.Size``, as values are compared and written to JSON."""
    return tuple(plain(item) for item in value) if isinstance(value, (tuple, list)) else value


def _write_attribute(module: nn.Module, name: str, value: Value) -> None:
    first, *rest = name.split(".")
    setattr(module, first, _changed(getattr(module, first), rest, value))


def _changed(held: Any, parts: Sequence[str], value: Value) -> Any:
    """Copy what is held with another value at a place inside of it; at no place, that value in its type."""
    if not parts:
        return value if type(held) is int else type(held)(value)
    first, *rest = parts
    new = _changed(_part_of(held, first), rest, value)
    if hasattr(held, "_fields"):
        return held._replace(**{first: new})
    if isinstance(held, tuple):
        return type(held)(new if i == int(first) else item for i, item in enumerate(held))
    alone = copy.copy(held)
    if isinstance(alone, MutableMapping):
        alone[first] = new
    elif isinstance(alone, list):
        alone[int(first)] = new
    elif getattr(type(alone), "__dataclass_params__", None) is not None:
        # also where it is frozen
        object.__setattr__(alone, first, new)
    else:
        setattr(alone, first, new)
    return alone


def _set(
    values: dict[tuple[str, str], list[Value]], module: nn.Module, attribute: Attribute, length: int
) -> None:
    """Note that ``attribute`` becomes ``length``: [value before, value after], the whole tuple where it is a
    part of one.
    """
    key = (attribute.module, attribute.name)
    if key not in values:
        before = read_attribute(module, attribute.name)
        values[key] = [before, before]
    if attribute.index is None:
        values[key][1] = length
    else:
        after = list(values[key][1])
        after[attribute.index] = length
        values[key][1] = tuple(after)


def _shapes_by_module(network: Network, shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Sort these shapes by module path, then by the name of the module's own tensor."""
    of_tensor = {id(network.tensors[name]): shape for name, shape in shapes.items()}
    by_module: dict[str, dict[str, Shape]] = {}
    for prefix, module in network.modules.items():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if id(tensor) in of_tensor:
                by_module.setdefault(prefix, {})[name] = of_tensor[id(tensor)]
    return by_module
