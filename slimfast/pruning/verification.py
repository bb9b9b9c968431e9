"""Proving that a thin network computes what the original does with the removed units masked to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, IntArray, Shape
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.cutting.patches import Patch, apply_patches
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.other_sizes import other_inputs
from slimfast.pruning.comparison import Comparison, OriginalFails, Pair, shaken
from slimfast.pruning.padded_inputs import padded
from slimfast.pruning.training_attributes import training_patches
from slimfast.pruning.training_forward import TrainingBreaks, compare_training
from slimfast.wrappers import unwrapped

_ATTRIBUTE = "_slimfast_verification"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared and how close it came; the weights of all groups were compared too, bit for bit.

    ``max_error``: the largest difference in an output as a share of that output's largest absolute value;
    ``tolerance``: what rounding in ``dtype`` explains. ``compared``: the groups whose cut was run.
    ``inexact``: groups left whole in that run because removing their units is not masking them, with the
    reason. ``training``: why the shapes of the training forward were not compared; None where they were.
    ``other``: the shapes of the inputs of another size and batch that were compared as well; none where the
    original takes no others. ``notes``: what else has to be known of the comparison, one line each.
    ``padded``: a batch with padding was compared too, where the network takes tokens with a mask.

    Example:
        print(slimfast.verify(model, thin, graph, keeps).max_error)
    """

    max_error: float
    tolerance: float
    dtype: str
    compared: tuple[str, ...]
    inexact: Mapping[str, str]
    training: str | None = None
    other: tuple[Shape, ...] = ()
    notes: tuple[str, ...] = ()
    padded: bool = False

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        error = f"off by {self.max_error:.2g} of its output, {self.tolerance:.2g} allowed, in {self.dtype}"
        yield f"compared with the masked original: {error}"
        if self.other:
            yield f"compared at another size or batch too: {', '.join(map(str, self.other))}"
        if self.padded:
            yield "compared with padding too"
        yield from self.notes
        for name, reason in self.inexact.items():
            yield f"left whole while comparing: {name}: {reason}"
        if self.training is not None:
            yield f"not compared in training mode: {self.training}"


def verify(
    model: nn.Module, thin: nn.Module, graph: ChannelGraph, keeps: Mapping[str, IntArray], example: Any = None
) -> Verification:
    """Compare ``thin`` with ``model`` whose removed units are masked, on ``example`` or on inputs made up.

    Every thin tensor must be the kept slice of the original, bit for bit. Then both run in eval mode, in
    float64 where the model allows it, and their outputs must agree to rounding, and once more for inputs of
    another size and batch, if the original takes any. In the masked original the removed units' slices of
    every parameter are zero, in the weights that make them and in those that read them (next to zero where
    that is no number). Parameters that are all 0 and multiply are small random numbers in both. Random
    numbers of the forward are drawn once, and the thin network gets what is left of them. A network that
    takes tokens with an ``attention_mask`` runs once more with padding, for which attentions go another way.
    In training mode both must return the same shapes, as recordings on tensors without data have them.
    Modules and random number generators stay as they are.

    Args:
        model: The original.
        thin: What was pruned from it.
        graph: Its groups, from :func:`slimfast.trace_channels`.
        keeps: The sorted units that each group keeps, by its name; a group that is not named keeps all.
        example: A tensor, a tuple or a dict of the model's arguments.

    Returns:
        What was compared and how close it came.

    Raises:
        SlimfastError: Naming the first tensor that is not the slice, the first module whose output disagrees,
            or what the thin network does in training that the original does not.

    Example:
        found = slimfast.verify(model, thin, graph, {"layer1.0.conv1": np.arange(32)})
    """
    return verify_cut(Network.of(unwrapped(model)), unwrapped(thin), Cut(graph, keeps), example)


def verify_cut(network: Network, thin: nn.Module, cut: Cut, example: Any = None) -> Verification:
    """Compare ``thin`` with a network after a cut, as :func:`verify` does."""
    _check_tensors(network, thin, cut)
    inexact = {group.name: group.inexact for group in cut.narrowed_groups if group.inexact is not None}
    exact = cut.without(inexact)
    whole_thin = Network.of(thin)
    if inexact:
        thin = exact.thin_copy(network, share=True)
    inputs = cut.graph.inputs.example() if example is None else arguments(example)
    moved, moved_thin, hiding = shaken(network, thin, exact)
    pair = Pair.of(moved, moved_thin, exact)
    first = pair.compare(inputs)
    found = [first, *(pair.compare(call.example()) for call in cut.graph.also)]
    second, other, notes = _compare_others(pair, inputs)
    found.append(second)
    third = _compare_padded(pair, inputs)
    found += [third] if third is not None else []
    if cut.graph.outputs is not None:
        notes.append(f"of the outputs {', '.join(map(str, cut.graph.outputs))} alone were compared")
    if hiding:
        notes.append(_hidden(hiding))
    return Verification(
        max_error=max(one.max_error for one in found),
        tolerance=max(one.tolerance for one in found),
        dtype=str(first.dtype).removeprefix("torch."),
        compared=tuple(group.name for group in exact.narrowed_groups),
        inexact=inexact,
        training=compare_training(network, whole_thin, inputs, cut.graph.outputs),
        other=other,
        notes=tuple(dict.fromkeys([*(note for one in found for note in one.notes), *notes])),
        padded=third is not None,
    )


def verify_and_patch(
    network: Network, thin: nn.Module, cut: Cut, example: Any
) -> tuple[Verification, tuple[Patch, ...]]:
    """Verify a thin network; where its training forward breaks for what it reads there alone, patch that.

    Returns:
        What :func:`verify_cut` found, and the attributes that were changed for it.
    """
    try:
        return verify_cut(network, thin, cut, example), ()
    except TrainingBreaks:
        inputs = cut.graph.inputs.example() if example is None else arguments(example)
        patches = training_patches(network, thin, cut, inputs)
        if not patches:
            raise
    apply_patches(thin, patches)
    return verify_cut(network, thin, cut, example), patches


def _hidden(names: tuple[str, ...]) -> str:
    some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return (
        f"{len(names)} parameters are all 0 and hide what they multiply ({some}): compared with small random "
        "numbers in their place"
    )


def _compare_others(pair: Pair, inputs: Arguments) -> tuple[Comparison, tuple[Shape, ...], list[str]]:
    """Compare both with inputs of another size and batch, if the original takes any."""
    nothing = Comparison(0.0, 0.0, torch.float64)
    found = other_inputs(pair.network, inputs)
    if found is None:
        return nothing, (), ["no other size or batch was found that the original takes: none was compared"]
    try:
        compared = pair.compare(found.inputs)
    except OriginalFails:
        return nothing, (), [f"the original fails with inputs of {found.shapes}: no other size was compared"]
    except SlimfastError as error:
        raise SlimfastError(f"{error}, with inputs of {found.shapes}") from error
    alone = "" if found.size and found.batch else ("size" if found.size else "batch")
    one = {"size": "batch", "batch": "size"}.get(alone)
    return (
        compared,
        found.shapes,
        [f"the original takes one {one} only: no other was compared"] if one else [],
    )


def _compare_padded(pair: Pair, inputs: Arguments) -> Comparison | None:
    """Compare both with padding, if the original takes any."""
    hidden = padded(pair.network, inputs)
    if hidden is None:
        return None
    try:
        return pair.compare(hidden)
    except OriginalFails:
        return None
    except SlimfastError as error:
        raise SlimfastError(f"{error}, with padding") from error


def _check_tensors(network: Network, thin: nn.Module, cut: Cut) -> None:
    """Check that every tensor of ``thin`` is the kept slice of the network's, bit for bit."""
    thin_tensors = named_tensors(thin)
    for name, wide in network.tensors.items():
        expected = select_indices(wide.detach(), cut.tensor_cuts.get(name, {}))
        got = thin_tensors.get(name)
        if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
            shown = "no such tensor" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
            raise SlimfastError(
                f"verify: {name}: expected {expected.dtype} of shape {tuple(expected.shape)}, got {shown}"
            )
        if not wide.is_meta and not torch.equal(_bits(expected), _bits(got.detach())):
            raise SlimfastError(f"verify: {name}: expected the kept slice of the original, got other values")


def _bits(tensor: Tensor) -> Tensor:
    """View a tensor's memory, so that NaN equals itself and -0 differs from 0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def attach_verification(thin: nn.Module, found: Verification | None) -> None:
    """Keep what was found with the thin network; None: it was not verified."""
    object.__setattr__(thin, _ATTRIBUTE, found)


def verification_report(thin: nn.Module) -> Verification:
    """Tell what was compared when a network of ``prune_channels`` was verified, and what was not.

    Args:
        thin: The network.

    Returns:
        What :func:`verify` found.

    Raises:
        SlimfastError: Where the network was not verified.

    Example:
        print(slimfast.verification_report(thin))
    """
    found = vars(thin).get(_ATTRIBUTE)
    if not isinstance(found, Verification):
        raise SlimfastError(f"{type(thin).__name__}: it was not verified")
    return found
