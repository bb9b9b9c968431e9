"""What a training batch is, how a network is called with it, and how batches are shared between processes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.recording.nests import cloned, holds_tensors


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into (inputs, targets or None).

    It is a tensor, (inputs,), (inputs, targets), or a dict of arguments.

    A dict's ``labels`` are its targets, the rest are keyword arguments of the network. Targets are a tensor,
    or for several outputs a tuple or dict of them.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return _checked(inputs, batch.get("labels"))
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return _checked(batch[0], None)
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _checked(batch[0], batch[1])
    what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, Sized) else type(batch).__name__
    raise ArgumentTypeError(f"a batch must be inputs or (inputs, targets), got a {what}")


def _checked(inputs: Any, targets: Any) -> tuple[Any, Any]:
    # A tokenizer's dict may also carry plain values, but somewhere there is a tensor.
    if not holds_tensors(inputs):
        raise ArgumentTypeError(
            f"a batch's inputs must be a tensor, or a tuple or dict of them, got {_type_name(inputs)}"
        )
    wanted = targets.values() if isinstance(targets, Mapping) else targets if _is_sequence(targets) else ()
    if not (targets is None or isinstance(targets, Tensor) or wanted):
        raise ArgumentTypeError(f"a batch's targets must be a tensor, got {_type_name(targets)}")
    if any(not isinstance(entry, Tensor) for entry in wanted):
        raise ArgumentTypeError(
            f"a batch's targets must be a tensor, got {_type_name(targets)}, or a tuple or dict of tensors"
        )
    return inputs, targets


def call(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` with a copy of one tensor, of a tuple as its arguments, or of a dict as its keywords."""
    inputs = cloned(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if _is_sequence(inputs) else model(inputs)


def mask_of(inputs: Any) -> Tensor | None:
    """Find the mask (N, L) that hides positions of the output, if a batch's inputs have one.

    That is ``attention_mask``, or ``decoder_attention_mask`` where there are inputs of a decoder: the
    positions of an encoder are others.
    """
    if not isinstance(inputs, Mapping):
        return None
    prefix = "decoder_" if any(str(name).startswith("decoder_") for name in inputs) else ""
    mask = inputs.get(f"{prefix}attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def describe(inputs: Any) -> str:
    """Write down the shapes and dtypes of a batch's inputs, for an error message."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {describe(value)}" for name, value in inputs.items())
    if _is_sequence(inputs):
        return ", ".join(describe(value) for value in inputs)
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    return _type_name(inputs)


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of nested tuples, lists and dicts to ``device``, fit to be trained on."""
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
        # What was made in inference mode cannot be kept for a backward pass.
        return moved.clone() if moved.is_inference() else moved
    if isinstance(value, Mapping):
        return {name: to_device(entry, device) for name, entry in value.items()}
    if _is_sequence(value):
        entries = [to_device(entry, device) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    return value


class Feed:
    """Give this process its share of the batches of one source, epoch by epoch, on its device.

    A plain :class:`DataLoader` is sharded by accelerate (every process has its own batches of the loader's
    batch size; the sampler's tail is repeated so that all have equally many). Any other iterable is shared by
    giving each process every n-th batch, the incomplete last round left out. An iterator, as a generator, is
    taken where ``steps`` are given: each epoch has that many of its batches, and the next goes on after them.
    ``check`` is called with each batch and its name, to refuse it.
    """

    def __init__(
        self,
        source: Iterable[Any],
        accelerator: Any,
        *,
        name: str,
        steps: int | None = None,
        check: Callable[[Any, str], None] | None = None,
    ) -> None:
        if isinstance(source, Iterator) and steps is None:
            raise ArgumentTypeError(
                f"{name} is an iterator, which is empty after one epoch: pass a list or a DataLoader, or "
                "steps_per_epoch where it has batches for all epochs"
            )
        if not isinstance(source, Iterable):
            raise ArgumentTypeError(f"{name} must be an iterable of batches, got {_type_name(source)}")
        self._name = name
        self._accelerator = accelerator
        self._source: Any = source
        self._steps = steps if isinstance(source, Iterator) else None
        self._taken = 0
        self._check = check
        self._turns = accelerator.num_processes
        if isinstance(getattr(source, "sampler", None), DistributedSampler):
            self._turns = 1
        elif self._turns > 1 and type(source) is DataLoader:
            self._source = accelerator.prepare_data_loader(source, device_placement=False)
            self._turns = 1

    def __len__(self) -> int:
        if not isinstance(self._source, Sized):
            raise ArgumentTypeError(f"{self._name} has no length: pass steps_per_epoch")
        try:
            length: int = len(self._source) // self._turns
        except TypeError as error:
            raise ArgumentTypeError(f"{self._name} has no length ({error}): pass steps_per_epoch") from error
        if length == 0:
            raise SlimfastError(
                f"{self._name} has no batches for {self._accelerator.num_processes} process(es)"
            )
        return length

    def epoch(self, epoch: int, *, seed: int) -> Iterator[Any]:
        """Yield the batches of epoch ``epoch``, after seeding every generator from ``seed`` and ``epoch``.

        So an epoch's order and augmentation depend on these two numbers alone, and a resumed run meets the
        same ones. (Loaders with persistent workers keep their workers' own generators and are the exception.)
        """
        seed_everything(seed + epoch)
        for part in _loader_parts(self._source):
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(seed + epoch)
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        batches = self._share()
        if self._steps is not None:
            # A training that is resumed has a new iterator, of which earlier epochs had the first batches.
            for _ in itertools.islice(batches, max(0, epoch * self._steps - self._taken)):
                pass
        return batches

    def _share(self) -> Iterator[Any]:
        turn = self._accelerator.process_index if self._turns > 1 else 0
        batches = iter(self._source)
        while len(in_turn := list(itertools.islice(batches, self._turns))) == self._turns:
            if self._check is not None:
                # Before it is on a GPU, which a token beyond a vocabulary ends.
                self._check(in_turn[turn], f"batch {self._taken}")
            self._taken += 1
            yield to_device(in_turn[turn], self._accelerator.device)


def _loader_parts(loader: Any) -> list[Any]:
    """List a loader, its samplers, and the samplers these are made of."""
    found: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and not any(part is known for known in found):
            found.append(part)
            waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler")]
    return found


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Put each module of ``model`` back into its own train or eval mode after the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode inside the block; after it each module has its own mode again."""
    with keeping_modes(model):
        model.eval()
        yield


def device_of(model: nn.Module) -> torch.device:
    """Find the device of the first parameter or buffer; the CPU for a network without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _type_name(value: Any) -> str:
    return type(value).__name__
