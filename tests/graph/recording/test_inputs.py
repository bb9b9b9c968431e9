"""InputSpec: examples to specs, specs to JSON and back, specs to synthetic examples."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from slimfast.errors import SlimfastError
from slimfast.graph.recording.inputs import InputSpec, TensorSpec, map_tensors


def test_a_tensor_is_the_only_argument():
    spec = InputSpec.of(torch.zeros(2, 3, dtype=torch.float16))
    assert spec.args == (TensorSpec((2, 3), torch.float16),)
    assert spec.kwargs == {}


def test_a_dict_is_keyword_arguments_and_keeps_what_is_not_a_tensor():
    spec = InputSpec.of({"ids": torch.tensor([[3, 7]]), "cache": False, "mask": None})
    assert spec.args == ()
    assert spec.kwargs == {"ids": TensorSpec((1, 2), torch.int64, 3, 7), "cache": False, "mask": None}


def test_json_round_trip_of_every_kind_of_argument():
    example = (
        torch.zeros(1, 2, dtype=torch.bfloat16),
        [torch.tensor([1, 5]), (True, 2.5, "same", None)],
        {"mask": torch.ones(2, dtype=torch.bool)},
    )
    spec = InputSpec.of(example)
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_synthetic_examples_have_the_shapes_types_and_ranges():
    example = {
        "x": torch.zeros(4, 5),
        "ids": torch.tensor([2, 6, 9]),
        "mask": torch.zeros(3, dtype=torch.bool),
    }
    # as it is read from a file of a version that did not hold the values
    document = InputSpec.of(example).to_json()
    for name in ("ids", "mask"):
        del document["kwargs"][name]["tensor"]["values"]
    spec = InputSpec.from_json(document)
    _, kwargs = spec.example(seed=1)
    assert kwargs["x"].shape == (4, 5)
    assert kwargs["x"].dtype == torch.float32
    assert 0.1 < kwargs["x"].std() < 3
    assert kwargs["ids"].min() >= 2
    assert kwargs["ids"].max() <= 9
    assert kwargs["mask"].all()
    again = spec.example(seed=1)[1]
    assert torch.equal(again["x"], kwargs["x"])
    assert torch.equal(again["ids"], kwargs["ids"])
    assert not torch.equal(spec.example(seed=2)[1]["x"], kwargs["x"])


def test_integers_and_booleans_are_the_example_s_own():
    ids, mask = torch.tensor([[7, 7, 2]]), torch.tensor([True, False, True])
    spec = InputSpec.of({"x": torch.zeros(3), "nest": [ids, {"mask": mask}]})
    ids_before = ids.clone()
    ids.fill_(0)
    for seed in (0, 1):
        made = spec.example(seed)[1]["nest"]
        assert torch.equal(made[0], ids_before)
        assert torch.equal(made[1]["mask"], mask)
        made[0].fill_(1)
    assert spec == InputSpec.of({"x": torch.ones(3), "nest": [torch.tensor([[2, 7, 3]]), {"mask": ~mask}]})


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.int32])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_file_keeps_integers_and_booleans(dtype, shape):
    given = torch.randint(0, 2, shape).to(dtype)
    spec = InputSpec.from_json(json.loads(json.dumps(InputSpec.of((given,)).to_json())))
    (made,), _ = spec.example(seed=3)
    assert made.dtype == dtype
    assert torch.equal(made, given)


def test_a_file_does_not_keep_a_large_tensor():
    spec = InputSpec.of(torch.arange(5000))
    assert "values" not in spec.to_json()["args"][0]["tensor"]
    assert torch.equal(spec.example()[0][0], torch.arange(5000))


def test_values_of_another_shape_are_made_up():
    spec = dataclasses.replace(TensorSpec.of(torch.tensor([3, 5])), shape=(4,))
    made = spec.make(torch.Generator().manual_seed(0))
    assert made.shape == (4,)
    assert 3 <= made.min() <= made.max() <= 5


@dataclasses.dataclass(frozen=True)
class Graph:
    """A batch of the kind that graph networks take."""

    x: torch.Tensor
    edges: torch.Tensor
    name: str = "graph"
    more: Any = None


class Slotted:
    """The same without a dictionary of attributes."""

    __slots__ = ("name", "x")

    def __init__(self, x):
        self.x, self.name = x, "slotted"


def test_tensors_inside_objects_are_described_and_made():
    inner = Slotted(torch.ones(2, 5))
    graph = Graph(torch.ones(4, 3), torch.tensor([[0, 1], [2, 2]]), more=[{"inner": inner}, None])
    spec = InputSpec.of(graph)
    (made,), kwargs = spec.example(seed=1)
    assert kwargs == {}
    assert type(made) is Graph
    assert made.name == "graph"
    assert made.x.shape == (4, 3)
    assert not torch.equal(made.x, graph.x)
    assert torch.equal(made.edges, graph.edges)
    slotted = made.more[0]["inner"]
    assert type(slotted) is Slotted
    assert slotted.x.shape == (2, 5)
    assert slotted.name == "slotted"
    assert slotted is not inner
    assert torch.equal(spec.example(seed=1)[0][0].x, made.x)


def test_an_object_beside_other_arguments():
    spec = InputSpec.of((torch.zeros(2), {"batch": Slotted(torch.zeros(1, 7))}))
    (_, nest), _ = spec.example()
    assert nest["batch"].x.shape == (1, 7)


def test_a_file_does_not_keep_an_object_and_says_so():
    spec = InputSpec.from_json(json.loads(json.dumps(InputSpec.of(Slotted(torch.zeros(2))).to_json())))
    with pytest.raises(SlimfastError, match=r"hold a .*Slotted, which a file does not keep; give example="):
        spec.example()


def test_tensors_in_objects_are_copied_and_the_objects_stay():
    graph = Graph(torch.ones(4, 3), torch.zeros(2, 2, dtype=torch.int64), more=Slotted(torch.ones(2)))
    doubled = map_tensors((graph, [3]), lambda tensor: tensor * 2)
    assert torch.equal(doubled[0].x, torch.full((4, 3), 2.0))
    assert torch.equal(doubled[0].more.x, torch.full((2,), 2.0))
    assert doubled[1] == [3]
    assert torch.equal(graph.x, torch.ones(4, 3))
    assert torch.equal(graph.more.x, torch.ones(2))


class _Uncopiable:
    def __init__(self):
        self.x = torch.ones(2)

    def __deepcopy__(self, memo):
        raise RuntimeError("one of a kind")


def test_an_object_that_cannot_be_copied_is_named():
    with pytest.raises(SlimfastError, match="example: the _Uncopiable cannot be copied: one of a kind"):
        InputSpec.of(_Uncopiable())


def test_a_meta_example_has_no_values_to_look_at():
    assert InputSpec.of(torch.zeros(2, dtype=torch.int64, device="meta")).args[0].shape == (2,)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (3, "example: expected a tensor, tuple or dict of the model's arguments, got int"),
        ((torch.zeros(1), object()), "example: argument 1 holds a object"),
        ({"x": {"y": object()}}, "example: argument 'x' holds a object"),
    ],
)
def test_what_is_no_argument_is_named(example, message):
    with pytest.raises(TypeError, match=message):
        InputSpec.of(example)


@pytest.mark.parametrize(
    "obj",
    [
        [],
        {"args": []},
        {"args": {}, "kwargs": {}},
        {"args": [{"tensor": {"shape": [-1], "dtype": "float32"}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "nn"}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "int64", "low": 3, "high": 1}}], "kwargs": {}},
        {"args": [{"tensor": []}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "int64", "values": [1, 2]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "int64", "values": [True]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "bool", "values": [1]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "float32", "values": [1]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "uint8", "values": [300]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "int64", "values": [2**70]}}], "kwargs": {}},
        {"args": [{"tensor": {"shape": [1], "dtype": "int64", "values": 1}}], "kwargs": {}},
        {"args": [{"object": 1}], "kwargs": {}},
        {"args": [{"value": [1]}], "kwargs": {}},
        {"args": [{"spam": 1}], "kwargs": {}},
        {"args": [7], "kwargs": {}},
    ],
)
def test_json_that_is_not_a_spec_is_refused(obj):
    with pytest.raises(ValueError, match="InputSpec: "):
        InputSpec.from_json(obj)
