"""What a forward returns is an output, whatever holds it: the layers that make it keep their rows."""

from __future__ import annotations

from collections import deque, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.inputs import tensors_in


class Plain:
    def __init__(self, *tensors: Any) -> None:
        self.first, self.rest = tensors[0], list(tensors[1:])
        self.kind = "plain"


class Slotted:
    __slots__ = ("__hidden", "open", "unset")

    def __init__(self, *tensors: Any) -> None:
        self.open, self.__hidden = tensors[0], tensors[1:]


class Derived(Slotted):
    __slots__ = "more"

    def __init__(self, *tensors: Any) -> None:
        super().__init__(*tensors[:-1])
        self.more = tensors[-1]


@dataclass
class Data:
    tensors: Any
    number: int = 3


class Named(dict[str, Any]):
    """A dictionary whose items are attributes as well, as in Hugging Face's outputs."""

    def __init__(self, *tensors: Any) -> None:
        super().__init__({str(i): tensor for i, tensor in enumerate(tensors)})
        self.__dict__.update({f"t{i}": tensor for i, tensor in enumerate(tensors)})


class Circular:
    def __init__(self, *tensors: Any) -> None:
        self.tensors, self.me, self.module = tensors, self, nn.Linear(2, 2)


Pair = namedtuple("Pair", ["left", "right"])


class StepCache:
    """What the next call reads."""

    def __init__(self, *tensors: Any) -> None:
        self.tensors = tensors


HOLDERS = {
    "object": Plain,
    "slots": Slotted,
    "slots of a base": Derived,
    "dataclass": lambda *t: Data(t),
    "named tuple": lambda *t: Pair(t[0], {"x": t[1:]}),
    "dictionary with attributes": Named,
    "list of objects": lambda *t: [Plain(x) for x in t],
    "object in an object": lambda *t: Plain(Data(t[:1]), Slotted(*t[1:], None)),
    "circle": Circular,
    "queue": lambda *t: deque(t),
    "object beside a tensor": lambda *t: (t[0], Plain(*t[1:])),
    "attribute of a list": lambda *t: _list_with(t),
}


class Tagged(list[Any]):
    pass


def _list_with(tensors: Any) -> Tagged:
    tagged = Tagged(tensors[:1])
    tagged.rest = tensors[1:]  # type: ignore[attr-defined]
    return tagged


@pytest.mark.parametrize("name", HOLDERS)
def test_every_tensor_is_found_once(name: str) -> None:
    tensors = [torch.full((2,), float(i)) for i in range(3)]
    found = list(tensors_in(HOLDERS[name](*tensors), strict=True))
    assert sorted(id(t) for t in found) == sorted(id(t) for t in tensors)


class Detector(nn.Module):
    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.boxes, self.scores, self.count = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 7, 1), nn.Conv2d(16, 2, 1)
        self.hold = hold

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return self.hold(self.boxes(x), self.scores(x), self.count(x))


@pytest.mark.parametrize("name", HOLDERS)
def test_the_layers_that_make_an_output_keep_their_rows(name: str) -> None:
    torch.manual_seed(0)
    model, image = Detector(HOLDERS[name]).eval(), torch.randn(1, 3, 12, 12)
    thin = slimfast.slim(model, image, explained_variance=0.6)
    assert [len(getattr(thin, n).weight) for n in ("boxes", "scores", "count")] == [4, 7, 2]
    assert len(thin.body[0].weight) < 16
    wide, narrow = (list(tensors_in(m(image))) for m in (model, thin))
    assert [t.shape for t in wide] == [t.shape for t in narrow]


@pytest.mark.parametrize(
    "distribution",
    [
        lambda x: torch.distributions.Categorical(logits=x),
        lambda x: torch.distributions.Independent(torch.distributions.Normal(x, x.exp()), 1),
        lambda x: torch.distributions.Bernoulli(logits=x),
    ],
)
def test_a_policy_keeps_its_actions(distribution: Any) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Any:
            return distribution(self.head(self.body(x).relu()))

    torch.manual_seed(0)
    model, x = Policy().eval(), torch.randn(3, 6)
    thin = slimfast.slim(model, x, params=0.5)
    assert thin.head.out_features == 5
    assert thin.body.out_features < 24
    assert thin(x).sample().shape == model(x).sample().shape


def test_what_a_cache_holds_may_shrink() -> None:
    tensor = torch.zeros(1)
    assert list(tensors_in({"logits": tensor, "state": StepCache(torch.zeros(2))})) == [tensor]


def test_what_cannot_be_looked_into_is_refused_by_its_type() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return (self.layer(part) for part in x.unbind(0))

    with pytest.raises(UnsupportedGraph, match=r"returns a builtins\.generator, which cannot be looked into"):
        slimfast.trace_channels(Lazy(), torch.randn(2, 4))
