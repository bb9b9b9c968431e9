"""A model gone through once: its modules by path, its parameters and buffers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from slimfast.errors import UnsupportedGraph


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A model with what it holds, found once and handed on.

    ``modules`` and ``tensors`` (parameters, then buffers) have each of them once, under the first of its
    names; ``tied``: each further name of a shared tensor, and its first one.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    tied: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Network:
        """Go through a model; raises UnsupportedGraph for a layer that waits for its first call."""
        places = list(_places(model))
        modules: dict[int, tuple[str, nn.Module]] = {}
        for path, module in places:
            modules.setdefault(id(module), (path, module))
        first: dict[int, str] = {}
        tensors: dict[str, Tensor] = {}
        tied: dict[str, str] = {}
        for kind in ("_parameters", "_buffers"):
            for path, module in places:
                for own, tensor in getattr(module, kind).items():
                    if tensor is None:
                        continue
                    name = f"{path}.{own}" if path else own
                    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                        raise UnsupportedGraph(
                            f"{name}: a lazy parameter has no shape yet; run the model once before"
                        )
                    if first.setdefault(id(tensor), name) is name:
                        tensors[name] = tensor
                    else:
                        tied[name] = first[id(tensor)]
        return cls(model, dict(modules.values()), tensors, tied)

    def plain_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name the tensors that modules hold as attributes, and neither as parameters nor as buffers."""
        for path, module in self.modules.items():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}".lstrip("."), value


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List every module under each of its paths.

    This is ``model.named_modules(remove_duplicate=False)`` in one loop: its generators, one inside the other,
    take several times as long.
    """
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        yield path, module
        if module._modules:
            prefix = f"{path}." if path else ""
            children = [
                (prefix + name, child) for name, child in module._modules.items() if child is not None
            ]
            waiting += reversed(children)
