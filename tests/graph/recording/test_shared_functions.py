"""A copy that would run the original's layers is refused, by the attribute that holds the function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

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


class Caught(nn.Module):
    """Its head reads what hooks have caught."""

    def __init__(self, caught: dict[int, Tensor]) -> None:
        super().__init__()
        self.body = network()
        self.head = nn.Linear(16 + 3, 2)
        self.caught = caught
        self.handles = [self.body[0].register_forward_hook(self.catch(caught, 0))]

    @staticmethod
    def catch(caught: dict[int, Tensor], place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            caught[place] = output

        return hook

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(x), self.caught[0]], 1))


def test_a_hook_that_writes_what_the_network_reads_is_refused() -> None:
    caught: dict[int, Tensor] = {}
    model = Caught(caught).eval()
    model(X)
    before = {place: tensor.clone() for place, tensor in caught.items()}
    with pytest.raises(
        UnsupportedGraph,
        match=r"^a hook of body\.0 writes into the attribute caught of the model itself, .* self$",
    ):
        slimfast.slim(model, X, params=0.5)
    assert caught.keys() == before.keys()
    assert all(torch.equal(caught[place], before[place]) for place in before)


def test_a_hook_that_reads_what_the_network_holds_is_none_of_those() -> None:
    model = network()
    model.factors = {"scale": 2.0}
    factors = model.factors
    model[0].register_forward_hook(lambda module, args, output: output * factors["scale"])
    assert slimfast.slim(model, X, params=0.5)(X).shape == (4, 3)


class CaughtBySelf(Caught):
    """The same as it is advised."""

    def __init__(self) -> None:
        super().__init__({})
        self.handles.pop().remove()
        self.handles = [self.body[0].register_forward_hook(self.keep)]

    def keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.caught[0] = output


def test_a_hook_that_is_a_method_works() -> None:
    model = CaughtBySelf().eval()
    expected = model(X)
    thin = slimfast.slim(model, X, params=0.6)
    assert thin(X).shape == (4, 2)
    assert not torch.allclose(thin(X), thin(3 * X))
    assert thin.caught is not model.caught
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("make", [dict, list, set])
def test_what_hooks_outside_of_the_network_have_caught_stays(make: Callable[[], Any]) -> None:
    model, caught = network(), make()

    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        if isinstance(caught, dict):
            caught["features"] = output
        else:
            (caught.append if isinstance(caught, list) else caught.add)(output)

    model[0].register_forward_hook(hook)
    model(X)
    before = list(caught.values() if isinstance(caught, dict) else caught)
    thin = slimfast.slim(model, X, params=0.5)
    after = list(caught.values() if isinstance(caught, dict) else caught)
    assert len(after) == len(before) == 1
    assert after[0] is before[0]
    assert thin(X).shape == (4, 3)
