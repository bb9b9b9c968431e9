"""How far a shorter network is from the deep one, on samples that it is given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.calibration.data import Calibration
from slimfast.calibration.forward import Slice, count_of, cut_batch, device_of, part_of
from slimfast.calibration.masks import mask_of, positions_that_count
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line
from slimfast.graph.recording.inputs import InputSpec, cloned, tensors_in
from slimfast.graph.recording.module_copies import copy_with
from slimfast.pruning.depth.shorter import Dropped, first_tensor, shorten

# Samples that run at once.
_AT_ONCE = 4
_MASK = "attention_mask"
# Whether a network gives scores of classes or tokens, and its tensors.
Outputs: TypeAlias = tuple[bool, list[Tensor]]


def samples_of(calibration: Any, model: nn.Module, example: Any, where: str) -> list[Slice]:
    """List the samples of a calibration, or of batches as :func:`slimfast.calibrate` takes them, in slices
    of a few.
    """
    if isinstance(calibration, Calibration):
        masks = calibration.masks or (None,) * len(calibration.batches)
        batches = list(zip(calibration.batches, masks, strict=True))
    elif isinstance(calibration, Iterable) and not isinstance(calibration, (str, Tensor, Mapping)):
        spec, device = InputSpec.of(example), device_of(model)
        cut = (cut_batch(b, model, spec, 1 << 40, device, f"batch {i}")[0] for i, b in enumerate(calibration))
        batches = [(args, mask_of(args, _MASK, f"batch {i}")) for i, args in enumerate(cut)]
    else:
        got = type(calibration).__name__
        raise ArgumentTypeError(f"{where}: expected calibration to be a Calibration or batches, got {got}")
    slices = []
    for args, mask in batches:
        count = count_of(args)
        for start in range(0, count, _AT_ONCE):
            stop = min(start + _AT_ONCE, count)
            part = None if mask is None else mask[start:stop]
            slices.append(Slice(part_of(args, start, stop), stop - start, part))
    if not slices:
        raise SlimfastError(f"{where}: expected at least one sample in calibration, got none")
    return slices


def first_samples(slices: Sequence[Slice], samples: int) -> list[Slice]:
    """Take the first samples of slices."""
    found, left = [], samples
    for part in slices:
        keep = min(left, part.samples)
        if keep:
            mask = None if part.mask is None else part.mask[:keep]
            found.append(Slice(part_of(part.args, 0, keep), keep, mask))
        left -= keep
    return found


class Divergence:
    """The divergence of shorter networks from a deep one, whose outputs are computed once where they fit in
    :data:`slimfast.calibration.spilling.MEMORY`.
    """

    def __init__(self, model: nn.Module, slices: Sequence[Slice]) -> None:
        self._model = model
        self._deep = copy_with(model, {}, share=True).eval()
        self._slices = slices
        self._held: dict[int, Outputs] = {}
        self._room = MEMORY

    def _wide(self, number: int) -> Outputs:
        """Give what the deep network says of a slice."""
        if number in self._held:
            return self._held[number]
        found = outputs_of(run(self._deep, self._slices[number].args))
        size = sum(tensor.nbytes for tensor in found[1])
        if size <= self._room:
            self._held[number], self._room = found, self._room - size
        return found

    def of(self, thin: nn.Module) -> float:
        """Measure how far a network's outputs are: nats for each position that counts where they are scores
        of classes or tokens, else the share of the deep network's energy.
        """
        total = weight = 0.0
        for number, part in enumerate(self._slices):
            found = apart(self._wide(number), outputs_of(run(thin, part.args)), part.mask)
            total, weight = total + found[0], weight + found[1]
        return total / weight if weight else math.inf

    def without(self, dropped: Sequence[Dropped]) -> float:
        """Measure the deep network without some of its layers."""
        return self.of(shorter_copy(self._model, dropped))


def shorter_copy(model: nn.Module, dropped: Sequence[Dropped]) -> nn.Module:
    """Copy a network without some of its layers, tensors shared, in eval mode."""
    short = copy_with(model, {}, share=True).eval()
    shorten(short, dropped)
    return short


@torch.no_grad()
def run(network: nn.Module, args: Arguments) -> Any:
    """Run a network on arguments of its own."""
    try:
        return network(*cloned(args[0]), **cloned(args[1]))
    except Exception as error:
        raise SlimfastError(f"drop_layers: the forward fails: {one_line(error)}") from error


def outputs_of(output: Any) -> Outputs:
    """Find what a network says: (whether it is scores, the tensors)."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named.shape[-1] > 1 and named.dim() < 4, [named]
    state = getattr(output, "last_hidden_state", None)
    if isinstance(state, Tensor):
        return False, [state]
    alone = first_tensor(output)
    if alone is not None and alone.dim() == 2 and alone.shape[1] > 1:
        return True, [alone]
    found = [t for t in tensors_in(output) if t.is_floating_point()]
    if not found:
        raise SlimfastError("drop_layers: expected floating outputs, got none")
    return False, found


def apart(wide: Outputs, thin: Outputs, mask: Tensor | None) -> tuple[float, float]:
    """Sum the divergences, and what they are to be divided by."""
    total = weight = 0.0
    for a, b in itertools.zip_longest(wide[1], thin[1]):
        if a is None or b is None or a.shape != b.shape:
            return math.inf, 1.0
        if not wide[0]:
            total += float((a.double() - b.double()).square().sum())
            weight += float(a.double().square().sum())
            continue
        counting = positions_that_count(a.shape[:-1], mask)
        for i in range(len(a)):
            own = a[i] if counting is None else a[i][counting[i]]
            other = b[i] if counting is None else b[i][counting[i]]
            p, q = own.float().log_softmax(-1), other.float().log_softmax(-1)
            total += float((p.exp() * (p - q)).sum(-1).double().sum())
            weight += float(math.prod(own.shape[:-1]))
    return (total if math.isfinite(total) else math.inf), weight


@torch.no_grad()
def influences(model: nn.Module, names: Sequence[str], slices: Sequence[Slice]) -> dict[str, float]:
    """Measure the block influence of modules: 1 - the mean cosine of what goes in and what comes out
    (ShortGPT, Men et al., 2024), over the positions that count; channels are last, or second where there are
    four dims.
    """
    network = copy_with(model, {}, share=True).eval()
    sums = {name: [0.0, 0.0] for name in names}

    def look(name: str, part: Slice) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = first_tensor((*args, *kwargs.values())), first_tensor(output)
            if before is None or after is None or before.shape != after.shape:
                return
            alike = nn.functional.cosine_similarity(
                before.double(), after.double(), dim=1 if before.dim() == 4 else -1
            )
            counting = positions_that_count(alike.shape, part.mask)
            alike = alike if counting is None else alike[counting]
            sums[name][0] += float(alike.sum())
            sums[name][1] += alike.numel()

        return hook

    for part in slices:
        with ExitStack() as hooks:
            for name in names:
                handle = network.get_submodule(name).register_forward_hook(look(name, part), with_kwargs=True)
                hooks.callback(handle.remove)
            run(network, part.args)
    return {name: 1.0 - total / count if count else math.inf for name, (total, count) in sums.items()}


def returns_of(model: nn.Module, names: Iterable[str], args: Arguments) -> Iterator[tuple[str, int, int]]:
    """Run a network once, and tell of modules how often they are called and what they return: (name, calls,
    how many values in a tuple; 0 for a tensor alone, -1 for anything else).
    """
    network = copy_with(model, {}, share=True).eval()
    found: dict[str, list[int]] = {name: [] for name in names}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            plain = type(output) in (tuple, list)
            found[name].append(0 if isinstance(output, Tensor) else len(output) if plain else -1)

        return hook

    with ExitStack() as hooks:
        for name in found:
            hooks.callback(network.get_submodule(name).register_forward_hook(look(name)).remove)
        run(network, args)
    for name, kinds in found.items():
        yield name, len(kinds), kinds[0] if kinds else -1
