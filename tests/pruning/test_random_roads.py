"""The whole road on random networks: outputs in objects, heads of training alone, computed weights."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn.utils import parametrizations, prune

import slimfast

Pair = namedtuple("Pair", "first second")


@dataclass
class Found:
    """What a detector returns: boxes, and scores in a dict of their own."""

    boxes: Tensor
    scores: dict[str, Tensor]


class Slots:
    """An object without a dict."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


# How two tensors leave a network, and how they are found again.
OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "tuple": (lambda a, b: (a, b), lambda out: out),
    "named tuple": (Pair, lambda out: (out.first, out.second)),
    "dataclass": (lambda a, b: Found(a, {"of": b}), lambda out: (out.boxes, out.scores["of"])),
    "slots": (lambda a, b: Slots([a, Slots(b)]), lambda out: (out.held[0], out.held[1].held)),
    "list of objects": (
        lambda a, b: [Found(t, {}) for t in (a, b)],
        lambda out: (out[0].boxes, out[1].boxes),
    ),
    "distributions": (
        lambda a, b: {
            "policy": Categorical(logits=a),
            "value": Independent(Normal(b, torch.ones_like(b)), 1),
        },
        lambda out: (out["policy"].logits, out["value"].base_dist.loc),
    ),
}


class Joined(nn.Module):
    """Branches side by side, ``count`` of them: more groups on one axis than a word has bits."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(width, 2) for _ in range(count))
        self.out = nn.Linear(2 * count, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([branch(x).relu() for branch in self.branches], -1))


class Residual(nn.Module):
    """A hidden layer, added to what it reads."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.norm(self.up(x)).relu())


class Network(nn.Module):
    """A stem, random layers, two heads whose answers leave in an object, and one of training alone."""

    def __init__(self, layers: list[nn.Module], widths: list[int], output: str, aux: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.first, self.second = nn.Linear(widths[-1], 4), nn.Linear(widths[-1], 3)
        self.aux = nn.Linear(widths[0], 2) if aux else None
        self._make = OUTPUTS[output][0]

    def forward(self, x: Tensor) -> Any:
        early = None
        for layer in self.layers:
            x = layer(x)
            early = x if early is None else early
        out = self._make(self.first(x), self.second(x.tanh()))
        return (out, self.aux(early)) if self.training and self.aux is not None else out


def _network(rng: np.random.Generator, output: str) -> Network:
    widths = [int(rng.integers(6, 14))]
    layers: list[nn.Module] = [nn.Linear(5, widths[0])]
    for _ in range(int(rng.integers(2, 5))):
        kind, width = int(rng.integers(4)), widths[-1]
        if kind == 0:
            layers.append(Residual(width, int(rng.integers(4, 16))))
        elif kind == 1:
            layers.append(Joined(width, int(rng.integers(65, 80)) if rng.random() < 0.3 else 3))
        else:
            widths.append(int(rng.integers(6, 14)))
            layers += [nn.Linear(width, widths[-1]), nn.BatchNorm1d(widths[-1]) if kind == 2 else nn.GELU()]
    return Network(layers, widths, output, aux=bool(rng.random() < 0.5))


def _linears(network: nn.Module) -> Iterator[nn.Linear]:
    return (module for module in network.modules() if isinstance(module, nn.Linear))


def _give_weights(network: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if "var" in name else 0.5 * torch.randn_like(tensor)
                )


def _masked(network: nn.Module, thin: nn.Module) -> nn.Module:
    """The original with the removed slices of its parameters zero, told by the thin network's manifest."""
    masked = copy.deepcopy(network)
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for name, dims in slimfast.manifest(thin).keeps.items():
            for dim, keep in dims.items():
                if name in tensors:
                    gone = np.setdiff1d(np.arange(tensors[name].shape[dim]), keep)
                    tensors[name].index_fill_(dim, torch.from_numpy(gone), 0)
    return masked


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("seed", range(4))
def test_outputs_in_objects_keep_their_lengths_and_values(output, seed):
    network = _network(np.random.default_rng([seed, len(output)]), output).double()
    _give_weights(network, seed)
    network.eval()
    example = torch.randn(3, 5, dtype=torch.float64)
    plan = slimfast.plan(network, example, params=0.6)
    thin = slimfast.prune_channels(network, plan, example=example)
    assert (
        sum(p.numel() for p in thin.parameters()) == plan.cost_after.params <= 0.6 * plan.cost_before.params
    )
    unpack = OUTPUTS[output][1]
    other = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        pairs = zip(unpack(_masked(network, thin)(other)), unpack(thin(other)), strict=True)
        for wide, narrow in pairs:
            assert wide.shape == narrow.shape
            assert (wide - narrow).abs().max() <= 1e-10 * wide.abs().max()
    thin.train()
    answer = thin(torch.randn(4, 5, dtype=torch.float64))
    answer, aux = answer if network.aux is not None else (answer, None)
    loss = sum(tensor.square().mean() for tensor in (*unpack(answer), *([] if aux is None else [aux])))
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in thin.parameters() if p.grad is not None)
    if aux is not None:
        assert aux.shape == (4, 2)


WRAPPED: dict[str, Callable[[nn.Linear], Any]] = {
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", amount=0.5),
    "pruned rows": lambda layer: prune.ln_structured(layer, "weight", amount=0.4, n=2, dim=0),
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("seed", range(3))
def test_layers_that_compute_their_weights_are_cut_right_or_refused(how, seed):
    """What a mask, a norm or a parametrisation makes of the weight is right after the cut as well."""
    rng = np.random.default_rng([seed, len(how)])
    network = _network(rng, "tuple").double()
    _give_weights(network, seed)
    hidden = [
        layer for layer in _linears(network) if layer not in (network.first, network.second, network.aux)
    ]
    for layer in rng.choice(np.array(hidden, dtype=object), 2, replace=False):
        WRAPPED[how](layer)
    network.eval()
    example = torch.randn(3, 5, dtype=torch.float64)
    plan = slimfast.plan(network, example, params=0.7)
    thin = slimfast.prune_channels(network, plan, example=example)
    assert sum(p.numel() for p in thin.parameters()) == plan.cost_after.params < plan.cost_before.params
    with torch.no_grad():
        assert [out.shape for out in thin(example)] == [(3, 4), (3, 3)]
