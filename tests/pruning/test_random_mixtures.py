"""The whole road on random networks for sequences, at second sizes too.

Recurrent layers, masks in several groups, shared modules and heads of training alone, in one draw.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import slimfast


class Recurrent(nn.Module):
    """What a recurrent layer says of each item."""

    def __init__(self, kind: str, width: int, hidden: int, layers: int, both: bool) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(width, hidden, layers, batch_first=True, bidirectional=both)
        self.width = hidden * (1 + both)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Norm(nn.Module):
    """A batch norm of items, each of which is a sample, and a layer of another width behind it."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.norm, self.out, self.width = nn.BatchNorm1d(width), nn.Linear(width, wider), wider

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x.flatten(0, 1)).relu()).unflatten(0, x.shape[:2])


class Twice(nn.Module):
    """A module that is used twice, in two places and beside what it reads."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shared(self.shared(x).relu())


class Branches(nn.Module):
    """Three layers that read the same, side by side."""

    def __init__(self, width: int, part: int) -> None:
        super().__init__()
        self.parts, self.width = nn.ModuleList(nn.Linear(width, part) for _ in range(3)), 3 * part

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).relu() for part in self.parts], -1)


class Mixture(nn.Module):
    """Random layers over (N, T, 5), an answer for each sequence, and one for each item in training alone."""

    def __init__(self, layers: list[Any], aux: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(layers[-1].width, 3)
        self.aux = nn.Linear(layers[0].width, 2) if aux else None

    def forward(self, x: Tensor) -> Any:
        early = x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = layer(x)
        out = self.head(x.mean(1))
        return (out, self.aux(early)) if self.training and self.aux is not None else out


def mixture(rng: np.random.Generator) -> Mixture:
    def width() -> int:
        return int(rng.integers(5, 12))

    layers: list[Any] = [Norm(5, width())]
    # One of each kind, in any order, so that every draw has what is to be mixed.
    for kind in rng.permutation(["recurrent", "recurrent", "norm", "twice", "branches"]):
        before = layers[-1].width
        if kind == "recurrent":
            name, both = str(rng.choice(["LSTM", "GRU", "RNN"])), bool(rng.random() < 0.5)
            layers.append(Recurrent(name, before, width(), int(rng.integers(1, 3)), both))
        elif kind == "norm":
            layers.append(Norm(before, width()))
        else:
            layers.append((Twice if kind == "twice" else Branches)(before, width()))
    return Mixture(layers, aux=bool(rng.random() < 0.5))


def mask(network: Mixture, rng: np.random.Generator) -> set[str]:
    """Mask rows of layers of several groups; the names of the masked layers."""
    layers = {
        n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and n not in ("head", "aux")
    }
    for name in (names := rng.choice(list(layers), 3, replace=False).tolist()):
        prune.ln_structured(layers[name], "weight", amount=0.3, n=2, dim=0)
        prune.random_unstructured(layers[name], "bias", amount=0.2)
    return set(names)


def zeroed(network: nn.Module, thin: nn.Module, x: Tensor) -> nn.Module:
    """The original with the removed slices of its parameters zero."""
    with torch.no_grad():
        network(x)  # by which masked weights are tensors that can be copied
        made = copy.deepcopy(network)
        tensors = dict(made.named_parameters())
        for name, dims in slimfast.manifest(thin).keeps.items():
            for dim, keep in dims.items():
                if name in tensors:
                    gone = np.setdiff1d(np.arange(tensors[name].shape[dim]), keep)
                    tensors[name].index_fill_(dim, torch.from_numpy(gone), 0)
    return made


@pytest.mark.parametrize("seed", range(8))
def test_all_in_one_draw(seed: int) -> None:
    rng = np.random.default_rng([seed, 29])
    torch.manual_seed(seed)
    network = mixture(rng).double()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.5
                )
    masked = mask(network, rng)
    network.eval()
    example = torch.randn(2, 4, 5, dtype=torch.float64)
    plan = slimfast.plan(network, example, params=0.6)
    thin = slimfast.prune_channels(network, plan, example=example)
    count = sum(p.numel() for p in thin.parameters())
    assert count == plan.cost_after.params <= 0.6 * plan.cost_before.params
    assert {name for name, m in thin.named_modules() if hasattr(m, "weight_mask")} == masked
    for size in ((2, 4), (5, 9), (1, 1)):
        x = torch.randn(*size, 5, dtype=torch.float64)
        with torch.no_grad():
            wide, narrow = zeroed(network, thin, x)(x), thin(x)
        assert wide.shape == narrow.shape == (size[0], 3)
        assert (wide - narrow).abs().max() <= 1e-10 * wide.abs().max()
    thin.train()
    answer = thin(torch.randn(3, 6, 5, dtype=torch.float64))
    answers = answer if network.aux is not None else (answer,)
    assert [tuple(a.shape) for a in answers] == [(3, 3), (3, 6, 2)][: len(answers)]
    sum(a.square().mean() for a in answers).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in thin.parameters())
