"""What the class of a transformer makes of a configuration: tensors and their shapes, without weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slimfast.arrays import Shape
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.forward import PROCESS_LOCK
from slimfast.graph.recording.module_copies import named_tensors

# A place in a configuration: attribute names and indices of lists.
Place: TypeAlias = tuple[str | int, ...]
Changes: TypeAlias = Mapping[Place, int]

# What makes tensors that hold nothing yet, as weights are before they are initialised or loaded.
_UNSET = {torch.empty, torch.rand, torch.randn, torch.empty_strided}
# What makes tensors of one value; of so many elements they are weights, which no process may hold twice.
_FILLED = {torch.zeros, torch.ones, torch.full}
_LARGE = 1 << 20
# What a grouped product of experts wants of the lengths it sums over, in bytes.
_ALIGNED = 16
# What is raised for sizes that do not go together, besides errors of Hugging Face's own.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class StockShapes:
    """The shapes that the class of a model has with changed configurations, each built once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[frozenset[tuple[Place, int]], dict[str, Shape] | None] = {}

    def at(self, changes: Changes) -> dict[str, Shape] | None:
        """Find the shapes after these changes of the configuration; None where the class refuses them."""
        key = frozenset(changes.items())
        if key not in self._known:
            stock = built_without_data(self._model, changed_config(config_of(self._model), changes))
            self._known[key] = None if stock is None else shapes_of(stock)
        return self._known[key]


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Return the shape of every parameter and buffer by its first name."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that no file of weights holds: the class computes them from its configuration."""
    found = {}
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                found[f"{path}.{name}".lstrip(".")] = buffer
    return found


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, int | None]]:
    """List the integers of a configuration's dict, and what has no value, each with its place."""
    if type(value) is int or value is None:
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*place, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, (*place, index))


def changed_config(config: Any, changes: Changes) -> Any | None:
    """Change these values in a copy of the configuration; None where it does not take them."""
    changed = copy.deepcopy(config)
    try:
        for place, new in changes.items():
            owner = changed
            for step in place[:-1]:
                owner = _item(owner, step)
            if isinstance(owner, (dict, list)):
                owner[place[-1]] = new  # type: ignore[index]
            else:
                setattr(owner, str(place[-1]), new)
        if hasattr(changed, "validate"):
            changed.validate()
    except Exception as error:
        _check_refusal(error, f"{type(config).__name__} cannot be changed")
        return None
    return changed


def _item(owner: Any, step: str | int) -> Any:
    return owner[step] if hasattr(owner, "__getitem__") else getattr(owner, str(step))


def config_of(model: nn.Module) -> Any:
    """Return the configuration of a transformer."""
    return model.config


def built_without_data(model: nn.Module, config: Any | None) -> nn.Module | None:
    """Build the class of ``model`` from a configuration, without data; None where it refuses."""
    if config is None:
        return None
    with torch.device("meta"):
        return _built(type(model), config)


def built_with_buffers(model: nn.Module, config: Any) -> nn.Module | None:
    """Build the class of ``model`` from a configuration, with the buffers that it computes and
    weights without data; None where it refuses.
    """
    with torch.random.fork_rng([]), _WithoutWeights():
        return _built(type(model), config)


def _built(made: type[nn.Module], config: Any) -> nn.Module | None:
    try:
        with PROCESS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return made(config)
    except Exception as error:
        _check_refusal(error, f"{made.__name__} cannot be built from a changed configuration")
        return None


def _check_refusal(error: Exception, what: str) -> None:
    """Raise :class:`SlimfastError` for what is no refusal of sizes that do not go together, which is said in
    one of many ways.
    """
    ours = type(error).__module__.partition(".")[0] in ("huggingface_hub", "transformers")
    if not ours and not isinstance(error, _REFUSALS):
        raise SlimfastError(f"{what}: {one_line(error)}") from error


class _WithoutWeights(TorchFunctionMode):
    """Tensors that hold nothing yet are made without data, what is computed is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _UNSET or func in _FILLED:
            made = func(*args, **{**kwargs, "device": "meta"})
            if func in _UNSET or made.numel() > _LARGE:
                return made
        return func(*args, **kwargs)


def multiple_for_experts(model: nn.Module) -> int:
    """Find of what the widths of a mixture of experts must be multiples, for the kernel that its class runs
    unless it is told otherwise; 1 where there is none.
    """
    config = config_of(model)
    # As it is read back from a folder, which does not hold what the caller has set.
    stock = built_without_data(model, type(config).from_dict(config.to_dict()))
    if stock is None or getattr(stock.config, "_experts_implementation", None) != "grouped_mm":
        return 1
    sizes = [tensor.element_size() for tensor in model.parameters() if tensor.dim() == 3]
    return max((_ALIGNED // size for size in sizes), default=1)
