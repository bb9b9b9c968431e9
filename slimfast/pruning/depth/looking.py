"""Look at a network for layers that can go, and compare a shorter one with the deep one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.distributed.dtensors import check_whole
from slimfast.errors import SlimfastError
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.inputs import tensors_in
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.graph.recording.network import Network
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.depth.divergence import returns_of, run
from slimfast.pruning.depth.shorter import Dropped, Names, first_tensor, shorten
from slimfast.pruning.depth.stacks import Block, Stack, find_stacks
from slimfast.pruning.padded_inputs import padded

# Operations of a network are not counted here: so many are usual.
_OPERATIONS = 1000


def look(model: nn.Module, inputs: Arguments) -> tuple[list[Stack], dict[str, int]]:
    """Find the stacks of a network, and how many values the modules that can go return: 0 for a tensor."""
    network = Network.of(model)
    check_whole(network.tensors, type(model).__name__)
    if any(tensor.is_meta for tensor in network.tensors.values()):
        raise SlimfastError("drop_layers: expected a network with weights, got tensors on the meta device")
    stacks = find_stacks(network, record(network, *inputs))
    wanted = [module for stack in stacks for block in stack.blocks.values() for module in _modules(block)]
    returns, kept = {}, {}
    for name, calls, values in returns_of(model, wanted, inputs):
        returns[name] = values
        if calls != 1:
            kept[name] = f"{name} is called {calls} times"
        elif values < 0:
            kept[name] = f"{name} returns neither a tensor nor a tuple"
    return [_usable(stack, kept) for stack in stacks], returns


def _modules(block: Block) -> list[str]:
    return [block.name, *(module for branch in block.branches for module in branch.modules)]


def _usable(stack: Stack, kept: Mapping[str, str]) -> Stack:
    """Leave out the blocks of which a module cannot be stood in for."""
    reasons = {
        name: next((kept[module] for module in _modules(block) if module in kept), None)
        for name, block in stack.blocks.items()
    }
    why = {name: reason for name, reason in reasons.items() if reason is not None}
    blocks = {name: block for name, block in stack.blocks.items() if name not in why}
    return replace(stack, blocks=blocks, kept={**stack.kept, **why})


def reasons_of(stacks: Sequence[Stack]) -> str:
    """Say why layers stay, one for each reason."""
    first: dict[str, str] = {}
    for stack in stacks:
        for name, reason in stack.kept.items():
            first.setdefault(reason, name)
    return "".join(f"; {name}: {reason}" for reason, name in first.items())


def shorter_network(model: nn.Module, dropped: Sequence[Dropped]) -> nn.Module:
    """Copy a network without some of its layers, with tensors of its own; those that go are not copied."""
    names = Names(dropped)
    staying = {
        name: tensor.detach().clone()
        for name, tensor in named_tensors(model).items()
        if names.shorter(name) is not None
    }
    short = copy_with(model, staying, share=True)
    shorten(short, dropped)
    return short


@torch.no_grad()
def compare(model: nn.Module, short: nn.Module, dropped: Sequence[Dropped], inputs: Arguments) -> float:
    """Compare a shorter network with the deep one in which what goes runs, and hands on its stream or zeros:
    the largest difference, as a share of the largest output; a batch with padding too, where there is a mask.

    Raises :class:`SlimfastError` where they differ by more than rounding.
    """
    deep, thin = copy_with(model, {}, share=True).eval(), copy_with(short, {}, share=True).eval()
    for one in dropped:
        if one.fate != "input":
            hook = functools.partial(_hand_on, one.fate == "zeros")
            deep.get_submodule(one.name).register_forward_hook(hook, with_kwargs=True)
    worst = 0.0
    with_padding = padded(Network.of(model), inputs)
    for call in (inputs, *([] if with_padding is None else [with_padding])):
        expected, got = run(deep, call), run(thin, call)
        floating = [t.dtype for t in tensors_in(expected) if t.is_floating_point()]
        limit = rounding(model, floating[0] if floating else torch.float32, _OPERATIONS)
        error = _apart(expected, got)
        if not error <= limit:
            raise SlimfastError(
                f"drop_layers: without {dropped[0].name} the network computes something else than with it "
                f"bypassed: off by {error:.2g}, of which rounding explains {limit:.2g}; a layer may depend "
                "on its number, or others on what it returns besides: drop other layers"
            )
        worst = max(worst, error)
    return worst


def _hand_on(zeros: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Put what a module read, or zeros, in the place of what it made of it; what else it returns stays."""
    x = first_tensor((*args, *kwargs.values()))
    made = first_tensor(output)
    assert x is not None, "it reads its stream"
    given = torch.zeros_like(x, device=x.device) if zeros else x
    if isinstance(output, Tensor):
        return given
    return tuple(given if value is made else value for value in output)


def _apart(expected: object, got: object) -> float:
    """Compare logits where there are any, for a cache has fewer layers, else all outputs."""
    pair = [getattr(output, "logits", None) for output in (expected, got)]
    if all(isinstance(one, torch.Tensor) for one in pair):
        return difference(*pair)
    states = [getattr(output, "last_hidden_state", None) for output in (expected, got)]
    if all(isinstance(one, torch.Tensor) for one in states):
        return difference(*states)
    return difference(expected, got)
