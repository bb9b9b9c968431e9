"""Make a network shorter: blocks that go, stubs where a branch was, and what counts layers follows."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.graph.recording.attributes import stack_of

# What becomes of a module: it goes, or a stub gives what it reads or zeros.
Fate: TypeAlias = Literal["gone", "input", "zeros"]

# Attributes, of a configuration or of a module around a stack, that are its number of layers.
_COUNTS = frozenset(
    ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
     "num_encoder_layers", "num_decoder_layers")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropped:
    """A module of the deep network that a shorter one has not: its name there, and what stands in its place.

    ``outputs``: how many values it returned in a tuple, 0 for a tensor alone.
    """

    name: str
    fate: Fate
    outputs: int = 0


class Stub(nn.Module):
    """Stand where a branch was, at no cost: give what is read, or zeros of its shape."""

    def __init__(self, *, zeros: bool, outputs: int) -> None:
        super().__init__()
        self.zeros, self.outputs = zeros, outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first tensor, or zeros like it, alone or before as many None as the branch returned."""
        x = first_tensor((*args, *kwargs.values()))
        assert x is not None, "a branch reads a tensor"
        given = torch.zeros_like(x, device=x.device) if self.zeros else x
        return (given, *[None] * (self.outputs - 1)) if self.outputs else given

    def extra_repr(self) -> str:
        """Say what it gives."""
        return "zeros" if self.zeros else "what it reads"


def first_tensor(values: Any) -> Tensor | None:
    """Find the first floating tensor of the arguments or the results of a module."""
    if isinstance(values, Tensor):
        return values
    values = values.values() if isinstance(values, Mapping) else values
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def shorten(model: nn.Module, dropped: Iterable[Dropped]) -> None:
    """Take modules out of a network that is nobody else's, in place.

    Numbered elements of a list are numbered anew. So are attributes that hold the number of their layer in
    all layers of the list (``layer_idx``); counts of layers, and lists with an item for each, in
    configurations and in the modules around follow.

    Raises :class:`SlimfastError` for a module that is not there.
    """
    gone: dict[str, set[str]] = {}
    for one in dropped:
        path, _, name = one.name.rpartition(".")
        try:
            owner = model.get_submodule(path)
            held = owner.get_submodule(name)
        except AttributeError:
            raise SlimfastError(
                f"{type(model).__name__}: expected a module {one.name}, which was dropped, got none; give "
                "the deep network"
            ) from None
        if one.fate == "gone":
            if not isinstance(owner, (nn.ModuleList, nn.Sequential)):
                kind = type(owner).__name__
                raise SlimfastError(f"{one.name}: expected an element of a list of layers, got one of {kind}")
            gone.setdefault(path, set()).add(name)
        else:
            stub = Stub(zeros=one.fate == "zeros", outputs=one.outputs)
            owner._modules[name] = stub.train(held.training)
    for path, names in gone.items():
        _shorten_stack(model, path, names)


def _shorten_stack(model: nn.Module, path: str, names: set[str]) -> None:
    container = model.get_submodule(path)
    elements = list(container._modules.items())
    kept = [i for i, (name, _) in enumerate(elements) if name not in names]
    _renumber([module for _, module in elements if module is not None], kept)
    numbered = all(name.isdigit() for name, _ in elements)
    container._modules = OrderedDict(
        (str(place) if numbered else elements[i][0], elements[i][1]) for place, i in enumerate(kept)
    )
    around = [model.get_submodule(outer) for outer in stack_of(path)]
    owners: dict[int, tuple[Any, list[str]]] = {}
    holding = [*zip(stack_of(path), around, strict=True)]
    holding += [(f"{path}.{name}", module) for name, module in container.named_modules() if name]
    for where, module in holding:
        config = vars(module).get("config")
        if hasattr(config, "__dict__"):
            owners.setdefault(id(config), (config, []))[1].append(where)
    for module in around:
        owners.setdefault(id(module), (module, [""]))
    for owner, places in owners.values():
        _follow(owner, len(elements), kept, path, whole="" in places)


def _renumber(elements: Sequence[nn.Module], kept: Sequence[int]) -> None:
    """Number the layers anew where they hold their number: an attribute that is it in all that have it."""
    found: dict[tuple[str, str], dict[int, nn.Module]] = {}
    wrong: set[tuple[str, str]] = set()
    for number, element in enumerate(elements):
        for path, module in element.named_modules():
            for name, value in vars(module).items():
                if type(value) is not int:
                    continue
                if value == number:
                    found.setdefault((path, name), {})[number] = module
                else:
                    wrong.add((path, name))
    for key, holders in found.items():
        if key in wrong or len(holders) < 2:
            continue
        for place, number in enumerate(kept):
            if number in holders:
                setattr(holders[number], key[1], place)


def _follow(owner: Any, count: int, kept: Sequence[int], path: str, *, whole: bool) -> None:
    """Let counts and lists of layers follow; ``whole``: the owner is of the whole network, which may have an
    encoder and a decoder.
    """
    values = {name: value for name, value in vars(owner).items() if not name.startswith("__")}
    for name, value in values.items():
        per_layer = isinstance(value, (list, tuple)) and len(value) == count
        if per_layer and ("layer" in name or "block" in name):
            setattr(owner, name, type(value)(value[i] for i in kept))
    counts = [name for name, value in values.items() if name in _COUNTS and value == count]
    side = next((side for side in ("encoder", "decoder") if side in path.split(".")), None)
    if whole and side == "encoder":
        counts = [name for name in counts if "decoder" not in name]
    elif whole and side == "decoder":
        named = [name for name in counts if side in name]
        counts = named or [name for name in counts if "encoder" not in name]
    for name in counts:
        setattr(owner, name, len(kept))


class Names:
    """The names of what is left, in the deep network and in the shorter one."""

    def __init__(self, dropped: Iterable[Dropped]) -> None:
        self._gone: dict[str, list[int]] = {}
        self._names: set[str] = set()
        for one in dropped:
            path, _, name = one.name.rpartition(".")
            self._names.add(one.name)
            if one.fate == "gone" and name.isdigit():
                bisect.insort(self._gone.setdefault(path, []), int(name))

    def shorter(self, name: str) -> str | None:
        """Name in the shorter network what has this name in the deep one; None for what is gone."""
        if any(around in self._names for around in stack_of(name)):
            return None
        parts = name.split(".")
        for i in range(1, len(parts)):
            gone = self._gone.get(".".join(name.split(".")[:i]))
            if gone and parts[i].isdigit():
                parts[i] = str(int(parts[i]) - bisect.bisect_left(gone, int(parts[i])))
        return ".".join(parts)

    def deep(self, name: str) -> str:
        """Name in the deep network what has this name in the shorter one."""
        parts = name.split(".")
        for i in range(1, len(parts)):
            gone = self._gone.get(".".join(parts[:i]))
            if gone and parts[i].isdigit():
                number = int(parts[i])
                for one in gone:
                    number += one <= number
                parts[i] = str(number)
        return ".".join(parts)
