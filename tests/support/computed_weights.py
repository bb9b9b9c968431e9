"""Networks whose layers compute their weights, and the same networks with the weights laid down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)


class Doubled(nn.Module):
    """A parametrization of a user's, with an inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


class Squashed(nn.Module):
    """A parametrization of a user's, without one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(3 * x)


def nothing(layer: nn.Module) -> None:
    """Leave the layer as it is."""


def mask(layer: nn.Module) -> None:
    """Mask three tenths of the weight."""
    prune.random_unstructured(layer, "weight", 0.3)


def masked_rows(layer: nn.Module) -> None:
    """Mask a third of what the layer makes."""
    prune.ln_structured(layer, "weight", 0.34, n=2, dim=0)


def long_directions(layer: nn.Module) -> None:
    """A weight norm whose directions have any length, which changes nothing."""
    parametrizations.weight_norm(layer)
    v = layer.parametrizations.weight.original1
    with torch.no_grad():
        v *= torch.exp(3 * torch.randn(v.shape[0], *[1] * (v.dim() - 1)))


def long_directions_of_old(layer: nn.Module) -> None:
    """The same of the weight norm of old."""
    weight_norm(layer)
    with torch.no_grad():
        layer.weight_v *= torch.exp(3 * torch.randn(layer.weight_g.shape))


def spectral(layer: nn.Module) -> None:
    """A spectral norm."""
    parametrizations.spectral_norm(layer)


def spectral_of_old(layer: nn.Module) -> None:
    """A spectral norm of old, which has not settled."""
    spectral_norm(layer, n_power_iterations=5)


def doubled(layer: nn.Module) -> None:
    """A user's own."""
    parametrize.register_parametrization(layer, "weight", Doubled())


def doubled_twice(layer: nn.Module) -> None:
    """Two, one behind the other."""
    doubled(layer)
    doubled(layer)


def squashed(layer: nn.Module) -> None:
    """A user's own that is not told how to go back."""
    parametrize.register_parametrization(layer, "weight", Squashed())


# What gives a repaired weight back, and what may not.
INVERTIBLE = (nothing, long_directions, long_directions_of_old, doubled, doubled_twice)
OTHERS = (mask, spectral, spectral_of_old, squashed)
KINDS = (*INVERTIBLE, masked_rows, *OTHERS)

Kind = Callable[[nn.Module], None]


def lay_down(layer: nn.Module) -> None:
    """Make the weight a parameter again."""
    if parametrize.is_parametrized(layer):
        parametrize.remove_parametrizations(layer, "weight")
    elif hasattr(layer, "weight_mask"):
        prune.remove(layer, "weight")
    elif hasattr(layer, "weight_g"):
        remove_weight_norm(layer)
    elif hasattr(layer, "weight_u"):
        remove_spectral_norm(layer)


def twins(
    build: Callable[[], nn.Module],
    layers: Callable[[nn.Module], Sequence[nn.Module]],
    kinds: Sequence[Kind],
    seed: int,
    example: Tensor,
) -> tuple[nn.Module, nn.Module]:
    """Build a network in float64 twice, its ``layers`` made of ``kinds``, and lay the weights of the second
    down."""
    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        model = build().double().eval()
        for kind, layer in zip(kinds, layers(model), strict=True):
            kind(layer)
        with torch.no_grad():
            # a mask multiplies, a norm iterates when the layer is called
            model.train()(example)
        made.append(model.eval())
    for layer in layers(made[1]):
        lay_down(layer)
    return made[0], made[1]
