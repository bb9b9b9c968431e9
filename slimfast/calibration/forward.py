"""Forwards on calibration batches: a copy of the network that is run, watched, on some of the samples."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.calibration.consumers import Consumer, input_of, to_device
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import InputSpec, TensorSpec, arguments, cloned, map_leaves
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.graph.recording.own_modes import without_own_modes


class _Fault(BaseException):
    """Takes what went wrong in a watcher out of a forward, past the handlers that are for the model's own
    errors.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Slice(NamedTuple):
    """Samples that run together: what the model is called with, how many they are, and the mask of those
    positions that count, None for all.
    """

    args: Arguments
    samples: int
    mask: Tensor | None = None


@contextmanager
def running(model: nn.Module) -> Iterator[tuple[nn.Module, torch.device]]:
    """Yield a copy of ``model`` in eval mode, without gradients, and its device; it shares the parameters,
    but not the buffers, which a forward may write to.
    """
    with torch.inference_mode(False), torch.no_grad(), without_own_modes():
        yield copy_to_run(model), device_of(model)


def copy_to_run(model: nn.Module, shared: Container[str] = ()) -> nn.Module:
    """Copy a model in eval mode; it shares its parameters, and of its buffers those of the names
    ``shared``.
    """
    tensors = {
        name: tensor.detach()
        if isinstance(tensor, nn.Parameter) or name in shared
        else tensor.detach().clone()
        for name, tensor in named_tensors(model).items()
    }
    return copy_with(model, tensors).eval()


def device_of(model: nn.Module) -> torch.device:
    """Find the device of a model's tensors; the CPU where they are on several."""
    devices = {tensor.device for tensor in named_tensors(model).values()}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


@contextmanager
def watched(
    network: nn.Module, consumers: Iterable[Consumer], see: Callable[[Consumer, Tensor], None]
) -> Iterator[None]:
    """Call ``see(consumer, x)`` with what each consumer is about to read."""

    def look(consumer: Consumer, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        if x is not None and x.numel():
            try:
                see(consumer, x.detach())
            except Exception as error:
                raise _Fault(error) from None

    with ExitStack() as hooks:
        for consumer in consumers:
            module = network.get_submodule(consumer.module)
            hook = functools.partial(look, consumer)
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def stop_before(
    network: nn.Module, paths: Iterable[str], stop: Callable[[tuple[tuple[str, int], Tensor]], None]
) -> None:
    """Call ``stop(((path, earlier calls), x))`` with what each of these layers is about to read.

    The hooks stay: the network is to be one that nobody keeps. A layer that makes its weight in a hook of its
    own does so after the call, which may change what it is made of.
    """
    calls: dict[str, int] = {}

    def look(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        if x is not None and x.numel():
            calls[path] = calls.get(path, -1) + 1
            stop(((path, calls[path]), x.detach()))

    for path in paths:
        hook = functools.partial(look, path)
        module = network.get_submodule(path)
        makes = "weight" not in module._parameters
        module.register_forward_pre_hook(hook, with_kwargs=True, prepend=makes)


def run(network: nn.Module, args: Arguments, what: str) -> None:
    """Run one forward on copies of the arguments; :class:`SlimfastError` of one line where it fails.

    What goes wrong in those who watch it is no fault of the forward, and is raised as it is.
    """
    try:
        network(*cloned(args[0]), **cloned(args[1]))
    except _Fault as fault:
        raise fault.error from None
    except SlimfastError:
        raise
    except Exception as error:
        raise SlimfastError(f"{what}: the forward fails: {one_line(error)}") from error


def cut_batch(
    batch: Any,
    network: nn.Module,
    inputs: InputSpec,
    samples: int,
    device: torch.device,
    where: str = "the batch",
) -> tuple[Arguments, int]:
    """Take the arguments of ``network`` out of a batch, of its first ``samples`` samples, on ``device``; and
    say how many those are. What the example has by place may be there by name.
    """
    args, kwargs = arguments(batch)
    if next(iter(tensors_in((args, kwargs))), None) is None:
        raise ArgumentTypeError(
            f"calibrate: expected a batch of tensors, got none in a {type(batch).__name__} ({where}); of "
            f"a data set a DataLoader makes batches"
        )
    if isinstance(batch, (tuple, list)) and len(args) == len(inputs.args) + 1:
        args = args[:-1]
    if "labels" in kwargs and "labels" not in inputs.kwargs:
        kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
    if inputs.args and not args:
        args, kwargs = _by_place(network, kwargs, len(inputs.args))
    _check_fit(args, kwargs, inputs, where)
    count = count_of((args, kwargs))
    if count == 0:
        raise SlimfastError("calibrate: expected batches with at least one sample, got an empty one")
    keep = min(count, samples)

    def move(leaf: Any) -> Any:
        return to_device(leaf, device)

    args, kwargs = part_of((args, kwargs), 0, keep)
    return (map_leaves(args, move), map_leaves(kwargs, move)), keep


def _by_place(network: nn.Module, kwargs: Mapping[str, Any], count: int) -> Arguments:
    """Give the first ``count`` arguments of a forward their places; all stay by name where one is missing."""
    parameters = inspect.signature(network.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][:count]
    if not kwargs.keys() >= set(names):
        return (), dict(kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in names}
    return tuple(kwargs[name] for name in names), rest


def _check_fit(args: tuple[Any, ...], kwargs: Mapping[str, Any], inputs: InputSpec, where: str) -> None:
    """Refuse a batch of other arguments than the example's, as far as those are known."""
    if len(args) != len(inputs.args):
        named = f" and by name {', '.join(kwargs)}" if kwargs else ""
        raise SlimfastError(
            f"calibrate: expected {len(inputs.args)} arguments as in the example, got {len(args)}{named} "
            f"({where})"
        )
    pairs: list[tuple[str, Any, Any]] = [
        (f"argument {i}", *pair) for i, pair in enumerate(zip(args, inputs.args, strict=True))
    ]
    pairs += [(name, value, inputs.kwargs[name]) for name, value in kwargs.items() if name in inputs.kwargs]
    for name, value, wanted in pairs:
        if isinstance(value, Tensor) and isinstance(wanted, TensorSpec):
            got = (_kind(value.dtype), value.dim())
            known = (_kind(wanted.dtype), len(wanted.shape))
            if got != known:
                raise SlimfastError(
                    f"calibrate: {name}: expected {known[0]} of {known[1]} dimensions as in the example, got "
                    f"{got[0]} of {got[1]} ({where})"
                )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "floating-point numbers"
    return "truth values" if dtype == torch.bool else "integers"


def count_of(batch: Arguments) -> int:
    """Count the samples of a batch: the length of its first tensor."""
    return next((len(t) for t in tensors_in(batch) if t.dim()), 0)


def part_of(batch: Arguments, start: int, stop: int) -> Arguments:
    """Cut a batch to its samples from ``start`` to ``stop``."""
    count = count_of(batch)

    def cut(leaf: Any) -> Any:
        return leaf[start:stop] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count else leaf

    return map_leaves(batch[0], cut), map_leaves(batch[1], cut)


def first_sample(batches: Iterable[Arguments]) -> Arguments:
    """Cut arguments to their first sample."""
    return part_of(next(iter(batches)), 0, 1)


def elements_of(batch: Arguments) -> int:
    """Count the numbers that a sample of a batch is made of."""
    return max(1, sum(t.numel() for t in tensors_in(batch)) // max(1, count_of(batch)))


def slices_of(
    batches: Iterable[tuple[Arguments, Tensor | None]], most: Callable[[Arguments], int]
) -> Iterator[Slice]:
    """Part batches, with their masks, into slices of at most ``most(batch)`` samples, and join neighbours of
    one shape up to as many.
    """
    waiting: list[Slice] = []
    for args, mask in batches:
        count, limit = count_of(args), max(1, most(args))
        # As few slices as will do, of one size.
        step = math.ceil(count / math.ceil(count / limit))
        for start in range(0, count, step):
            stop = min(start + step, count)
            one = Slice(part_of(args, start, stop), stop - start, None if mask is None else mask[start:stop])
            if waiting and (
                sum(s.samples for s in waiting) + one.samples > limit
                or signature_of(waiting[0]) != signature_of(one)
            ):
                yield _joined(waiting)
                waiting = []
            waiting.append(one)
    if waiting:
        yield _joined(waiting)


def signature_of(part: Slice) -> Any:
    """Describe what slices must have in common to be one: a tensor that is not of samples itself."""

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        whole = leaf.dim() and len(leaf) == part.samples
        return (leaf.dtype, leaf.shape[1:]) if whole else id(leaf)

    return map_leaves(part.args[0], describe), map_leaves(part.args[1], describe), part.mask is None


def _joined(parts: list[Slice]) -> Slice:
    if len(parts) == 1:
        return parts[0]
    leaves = [list(tensors_in(part.args)) for part in parts]
    rest = iter(range(len(leaves[0])))

    def join(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        place = next(rest)
        of_samples = leaf.dim() and len(leaf) == parts[0].samples
        return torch.cat([tensors[place] for tensors in leaves]) if of_samples else leaf

    args = map_leaves(parts[0].args[0], join), map_leaves(parts[0].args[1], join)
    masks = [part.mask for part in parts if part.mask is not None]
    return Slice(args, sum(part.samples for part in parts), torch.cat(masks) if masks else None)
