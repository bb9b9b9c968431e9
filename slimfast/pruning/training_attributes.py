"""Find integers that the forward reads in training alone, and that must follow a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from slimfast.arrays import Arguments
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.patches import Patch
from slimfast.graph.recording.network import Network
from slimfast.pruning.training_forward import TrainingForward

# Attributes that are tried alone, and rounds in which one of them is taken.
_MOST_TRIES = 64
_MOST_ROUNDS = 4


def training_patches(network: Network, thin: nn.Module, cut: Cut, inputs: Arguments) -> tuple[Patch, ...]:
    """Find the attributes with which the thin network's training forward does what the original's does.

    Eval mode, which is traced, does not read them. One that holds the old length of an axis that was cut is
    tried with the new length; it is taken where the training forward then runs with the shapes of the
    original's, or gets further than with any other.

    Args:
        network: The original.
        thin: What was cut from it, whose training forward fails; it is left as it is.
        cut: What was cut.
        inputs: What both are called with.

    Returns:
        The patches; none where no attribute, or more than one, would do.
    """
    forward = TrainingForward.of(network, inputs, cut.graph.outputs)
    if isinstance(forward, str):
        return ()
    modules = dict(Network.of(thin).modules)
    found: list[Patch] = []
    try:
        for _ in range(_MOST_ROUNDS):
            tried = {patch: forward.reached(thin, patch) for patch in _candidates(modules, cut)}
            whole = [patch for patch, calls in tried.items() if calls is None]
            if len(whole) == 1:
                return tuple(sorted([*found, *whole], key=lambda patch: (patch.module, patch.attribute)))
            best = max((calls or 0 for calls in tried.values()), default=0)
            further = [patch for patch, calls in tried.items() if calls == best]
            if whole or len(further) != 1:
                return ()
            found += further
            vars(modules[further[0].module])[further[0].attribute] = further[0].after
    finally:
        for patch in found:
            vars(modules[patch.module])[patch.attribute] = patch.before
    return ()


def _candidates(modules: Mapping[str, nn.Module], cut: Cut) -> list[Patch]:
    """List the integers of modules that have the old length of an axis that was cut inside of them."""
    return [patch for patch, _ in zip(_holders(modules, cut), range(_MOST_TRIES), strict=False)]


def _holders(modules: Mapping[str, nn.Module], cut: Cut) -> Iterator[Patch]:
    for path, module in modules.items():
        if type(module).__module__.startswith("torch.nn."):
            continue
        lengths = _lengths(path, cut)
        for name, value in vars(module).items():
            if type(value) is int and not name.startswith("_"):
                for after in sorted(lengths.get(value, ())):
                    yield Patch(path, name, value, after)


def _lengths(path: str, cut: Cut) -> dict[int, set[int]]:
    """Map the old length of each axis that was cut in a module to its new ones."""
    found: dict[int, set[int]] = {}
    for name, dims in cut.tensor_cuts.items():
        if not path or name.startswith(f"{path}."):
            for dim, kept in dims.items():
                found.setdefault(cut.graph.axes[name][dim].length, set()).add(len(kept))
    return found
