"""A copy that would run the original's layers is refused, by the attribute that holds the function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.errors import UnsupportedGraph

X = torch.randn(4, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval()


def wrapped_forward(net: nn.Sequential) -> None:
    plain = net[2].forward
    net[2].forward = lambda x: plain(x) * 2


def wrapped_twice(net: nn.Sequential) -> None:
    wrapped_forward(net)
    once = net[2].forward
    net[2].forward = functools.partial(lambda function, x: function(x) + 1, once)


def closure_on_the_module(net: nn.Sequential) -> None:
    layer = net[2]
    net[2].forward = lambda x: nn.functional.linear(x, layer.weight)


def closure_on_the_tensor(net: nn.Sequential) -> None:
    weight = net[2].weight
    net[2].forward = lambda x: nn.functional.linear(x, weight)


def default_of_a_function(net: nn.Sequential) -> None:
    def forward(x: Tensor, layer: nn.Module = net[2]) -> Tensor:
        return nn.functional.linear(x, layer.weight)

    net[2].forward = forward


def variable_of_a_module(net: nn.Sequential) -> None:
    globals()["PLAIN"] = net[2].forward
    net[2].forward = lambda x: PLAIN(x) * 2


def hook_that_adds_another_layer(net: nn.Sequential) -> None:
    other = net[0]
    net[2].register_forward_hook(lambda module, args, output: output + other.weight.sum())


WRONG: dict[str, tuple[Callable[[nn.Sequential], None], str]] = {
    "wrapped": (wrapped_forward, r"the original's 2\.weight, through the attribute forward of 2;"),
    "twice": (wrapped_twice, r"the original's 2\.weight, through the attribute forward of 2;"),
    "module": (closure_on_the_module, r"the original's 2\.weight, through the attribute forward of 2;"),
    "tensor": (closure_on_the_tensor, r"the original's 2\.weight, through the attribute forward of 2;"),
    "default": (default_of_a_function, r"the original's 2\.weight, through the attribute forward of 2;"),
    "variable": (variable_of_a_module, r"the original's 2\.weight, through the attribute forward of 2;"),
    "hook": (hook_that_adds_another_layer, r"the original's 0\.weight, through a hook of 2;"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_function_that_encloses_the_original_is_refused(name: str) -> None:
    wrap, message = WRONG[name]
    net = network()
    wrap(net)
    with pytest.raises(UnsupportedGraph, match=message) as caught:
        slimfast.slim(net, X, params=0.6)
    assert "\n" not in str(caught.value)


def bound_method(net: nn.Sequential) -> None:
    net[2].forward = MethodType(lambda self, x: nn.functional.linear(x, self.weight) * 2, net[2])


def method_of_another_layer(net: nn.Sequential) -> None:
    net[1].after = net[0].forward


def partial_of_the_module(net: nn.Sequential) -> None:
    net[2].forward = functools.partial(lambda layer, x: nn.functional.linear(x, layer.weight), net[2])


def function_without_a_layer(net: nn.Sequential) -> None:
    factor = 2.0
    net[1].forward = lambda x: x.relu() * factor


def hook_without_a_layer(net: nn.Sequential) -> None:
    net[2].register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    "wrap",
    [
        bound_method,
        method_of_another_layer,
        partial_of_the_module,
        function_without_a_layer,
        hook_without_a_layer,
    ],
)
def test_what_a_copy_has_of_its_own_is_cut(wrap: Callable[[nn.Sequential], None]) -> None:
    net = network()
    wrap(net)
    thin = slimfast.slim(net, X, params=0.6).eval()
    before = thin(X)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    assert torch.equal(before, thin(X))


class SharesItsLayer(nn.Module):
    """Is copied in a way of its own, which leaves the layer where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def __deepcopy__(self, memo: dict[int, object]) -> SharesItsLayer:
        copied = SharesItsLayer()
        copied.layer = self.layer
        return copied

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).relu())


def test_a_class_that_does_not_copy_its_layer_is_refused() -> None:
    message = r"the original's layer\.weight, through a function outside of it, or a class's own way of being"
    with pytest.raises(UnsupportedGraph, match=message):
        slimfast.slim(SharesItsLayer().eval(), X, params=0.6)
