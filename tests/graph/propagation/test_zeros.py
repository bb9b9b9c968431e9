"""What masking leaves of a removed unit: products that sum over units are inexact where it is not 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps
from support.pruning_cases import plan_of
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.verification import verify

Function = Callable[[Tensor], Tensor]

NONZERO: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "elu + 1": lambda x: F.elu(x) + 1,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "cos": torch.cos,
    "1 - x": lambda x: 1 - x,
    "clamp": lambda x: x.clamp(min=0.1),
    "masked_fill": lambda x: x.masked_fill(x < 0.1, 2.0),
    "where": lambda x: torch.where(x > 0, x, 0.5),
    "in place": lambda x: x.mul(2).sigmoid_(),
    "softmax of another axis": lambda x: x.softmax(1),
    "plus a constant tensor": lambda x: x + torch.ones(1, 1, 1),
    "padded in time": lambda x: F.pad(x, (0, 0, 0, 1), value=1.0),
}
ZERO: dict[str, Function] = {
    "itself": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh in place": lambda x: x.mul(2).tanh_(),
    "square": lambda x: x**2,
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "mean of another axis": lambda x: x.mean(1, keepdim=True),
    "another order": lambda x: x[:, [2, 0, 1]].transpose(0, 1).transpose(0, 1),
    "sum of two": lambda x: torch.stack([x, 2 * x]).sum(0),
    "padded in time": lambda x: F.pad(x, (0, 0, 1, 0)),
    "scaled by numbers": lambda x: x * torch.exp(x),
}


class Similarity(nn.Module):
    """How alike the features of queries and keys are, as in attention without a softmax."""

    def __init__(self, a: Function, b: Function) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(5, 8), nn.Linear(5, 8)
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.query(x)) @ self.b(self.key(x)).transpose(1, 2)


def inexact(model: nn.Module, group: str = "query") -> str | None:
    """Why a group is inexact; what is said to be exact is cut and compared with the masked network."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.eval()
    example = torch.randn(2, 3, 5)
    graph = trace_channels(model, example)
    keeps = random_keeps(graph, 1)
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    assert set(verify(model, thin, graph, keeps, example).compared) == set(keeps)
    return graph[group].inexact


def masking_differs(model: nn.Module, group: str = "query") -> bool:
    """Whether a network cut in this group computes anything but what the masked one does."""
    graph = trace_channels(model, torch.randn(2, 3, 5))
    certain = replace(graph, groups=tuple(replace(g, inexact=None) for g in graph))
    keeps = {group: np.arange(0, graph[group].n, 2)}
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    try:
        verify(model, thin, certain, keeps, torch.randn(2, 3, 5))
    except SlimfastError as error:
        return "is not the masked original" in str(error)
    return False


@pytest.mark.parametrize("name", NONZERO)
def test_a_sum_over_products_of_what_is_not_zero_is_inexact(name):
    model = Similarity(NONZERO[name], NONZERO[name])
    assert "adds up along it what is not 0" in inexact(model)
    assert masking_differs(model)


@pytest.mark.parametrize("name", ZERO)
def test_one_factor_that_is_zero_is_enough(name):
    assert inexact(Similarity(ZERO[name], ZERO[name])) is None
    assert inexact(Similarity(ZERO[name], torch.sigmoid)) is None
    assert inexact(Similarity(torch.sigmoid, ZERO[name])) is None


class Fused(Similarity):
    def forward(self, x: Tensor) -> Tensor:
        query, key = self.a(self.query(x)), self.b(self.key(x))
        return F.scaled_dot_product_attention(query, key, x, scale=0.5)


def test_fused_attention_sums_over_its_queries_and_keys():
    assert "adds up along it" in inexact(Fused(torch.sigmoid, torch.sigmoid))
    assert inexact(Fused(torch.sigmoid, torch.relu)) is None


def test_what_attention_weighs_stays_zero_for_removed_channels_of_the_values():
    class Twice(Fused):
        def forward(self, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(x, x, self.query(x), scale=0.5)
            z = x.softmax(-1) @ x.transpose(1, 2) @ self.key(x)
            return y @ z.transpose(1, 2)

    assert inexact(Twice(torch.relu, torch.relu)) is None


@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_without_a_scale_leaves_its_mean(affine):
    class Normed(Similarity):
        def __init__(self) -> None:
            super().__init__(torch.relu, torch.relu)
            self.norm = nn.BatchNorm1d(8, affine=affine)
            self.norm.running_mean.normal_()

        def forward(self, x: Tensor) -> Tensor:
            query, key = (self.norm(y(x).transpose(1, 2)) for y in (self.query, self.key))
            return query.transpose(1, 2) @ key

    model = Normed()
    assert (inexact(model) is None) is affine
    assert masking_differs(model) is not affine


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_along_another_axis_leaves_its_bias(bias):
    class Mixed(Similarity):
        def __init__(self) -> None:
            super().__init__(torch.relu, torch.relu)
            self.mix = nn.Linear(3, 3, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            query, key = (self.mix(y(x).transpose(1, 2)) for y in (self.query, self.key))
            return query.transpose(1, 2) @ key

    model = Mixed()
    assert (inexact(model) is None) is not bias
    assert masking_differs(model) is bias


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("function", [torch.sigmoid, torch.relu])
def test_weights_that_are_computed_are_a_factor_too(kind, function):
    class Computed(Similarity):
        """The filters are made of another input than the one that they are applied to."""

        def forward(self, x: Tensor) -> Tensor:
            weight = self.a(self.key(x[:1])[0])
            y = self.b(self.query(x))
            if kind == "linear":
                return F.linear(y, weight)
            return F.conv1d(y.transpose(1, 2), weight[:, :, None])

    model = Computed(function, torch.sigmoid)
    assert (inexact(model, "key") is None) is (function is torch.relu)
    assert masking_differs(model, "key") is (function is torch.sigmoid)


def test_buffers_and_inputs_are_not_masked():
    class Scored(Similarity):
        def __init__(self) -> None:
            super().__init__(torch.relu, torch.relu)
            self.register_buffer("shift", torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (self.query(x) + self.shift) @ (self.key(x) + self.shift).transpose(1, 2)

    model = Scored()
    assert "adds up along it" in inexact(model)
    assert masking_differs(model)


def test_a_parameter_of_another_axis_is_not_masked_with_the_units():
    class Placed(Similarity):
        def __init__(self) -> None:
            super().__init__(torch.relu, torch.relu)
            self.place = nn.Parameter(torch.randn(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.query(x) + self.place) @ (self.key(x) * self.place + self.place).transpose(1, 2)

    model = Placed()
    assert "adds up along it" in inexact(model)
    assert masking_differs(model)


def test_a_distance_to_what_is_removed_is_not_zero():
    class Distant(Similarity):
        """Distances of the positions to the rows of two weights; what is summed over are the rows."""

        def forward(self, x: Tensor) -> Tensor:
            query, key = (torch.cdist(x, y.weight) for y in (self.query, self.key))
            return query @ key.transpose(1, 2)

    model = Distant(torch.relu, torch.relu)
    assert "adds up along it" in inexact(model)
    assert masking_differs(model)


def written_into_zeros(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = torch.sigmoid(x)[:, 1:]
    return y


def counted_up(x: Tensor) -> Tensor:
    one = torch.zeros(1)
    one += 1
    return x + one


@pytest.mark.parametrize("function", [written_into_zeros, counted_up])
def test_zeros_that_are_written_to_are_zeros_no_more(function):
    model = Similarity(function, function)
    assert "adds up along it" in inexact(model)
    assert masking_differs(model)


def test_zeros_are_zeros_where_zeros_are_written():
    def written(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = torch.relu(x)[:, 1:]
        return y

    assert inexact(Similarity(written, written)) is None
