"""Forwards on calibration batches: a copy of the network that is run, watched, on some of the samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.calibration.consumers import Consumer, input_of, to_device
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import InputSpec, arguments, cloned, map_leaves
from slimfast.graph.recording.module_copies import copy_with, named_tensors


class _Fault(BaseException):
    """Takes what went wrong in a watcher out of a forward, past the handlers that are for the model's own
    errors.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@contextmanager
def running(model: nn.Module) -> Iterator[tuple[nn.Module, torch.device]]:
    """Yield a copy of ``model`` in eval mode, without gradients, and its device; it shares the parameters,
    but not the buffers, which a forward may write to.
    """
    tensors = {
        name: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
        for name, tensor in named_tensors(model).items()
    }
    devices = {tensor.device for tensor in tensors.values()}
    with torch.no_grad():
        yield copy_with(model, tensors).eval(), devices.pop() if len(devices) == 1 else torch.device("cpu")


@contextmanager
def watched(
    network: nn.Module, consumers: Iterable[Consumer], see: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Call ``see[weight](columns)`` with what each consumer is about to read."""

    def look(consumer: Consumer, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        if x is not None and x.numel():
            try:
                see[consumer.weight](consumer.columns(x.detach()))
            except Exception as error:
                raise _Fault(error) from None

    with ExitStack() as hooks:
        for consumer in consumers:
            module = network.get_submodule(consumer.module)
            hook = functools.partial(look, consumer)
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


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


def cut_batch(batch: Any, inputs: InputSpec, samples: int, device: torch.device) -> tuple[Arguments, int]:
    """Take the arguments out of a batch, of its first ``samples`` samples, on ``device``; and say how many
    those are.
    """
    args, kwargs = arguments(batch)
    if isinstance(batch, (tuple, list)) and len(args) == len(inputs.args) + 1:
        args = args[:-1]
    if "labels" in kwargs and "labels" not in inputs.kwargs:
        kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
    count = next((len(t) for t in tensors_in((args, kwargs)) if t.dim()), 0)
    if count == 0:
        raise SlimfastError("calibrate: expected batches with at least one sample, got an empty one")
    keep = min(count, samples)

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count:
            leaf = leaf[:keep]
        return to_device(leaf, device)

    return (map_leaves(args, cut), map_leaves(kwargs, cut)), keep


def first_sample(batches: Iterable[Arguments]) -> Arguments:
    """Cut arguments to their first sample."""
    args, kwargs = next(iter(batches))
    count = len(next(t for t in tensors_in((args, kwargs)) if t.dim()))

    def cut(leaf: Any) -> Any:
        return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count else leaf

    return map_leaves(args, cut), map_leaves(kwargs, cut)


def joined(batches: Iterable[Arguments]) -> Arguments:
    """Join batches to one; :class:`SlimfastError` where their samples are not of one shape."""
    each = list(batches)
    leaves = [list(tensors_in(batch)) for batch in each]
    count = len(leaves[0][0])
    for other in leaves[1:]:
        one, two = ([list(leaf.shape[1:]) for leaf in tensors] for tensors in (leaves[0], other))
        if one != two:
            raise SlimfastError(f"calibration: expected samples of one shape, got {one} and {two}")
    rest = iter(range(len(leaves[0])))

    def join(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        place = next(rest)
        return (
            torch.cat([tensors[place] for tensors in leaves]) if leaf.dim() and len(leaf) == count else leaf
        )

    return map_leaves(each[0][0], join), map_leaves(each[0][1], join)
