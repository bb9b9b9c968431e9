"""InputSpec: examples to specs, specs to JSON and back, specs to synthetic examples."""

from __future__ import annotations

import json

import pytest
import torch

from slimfast.graph.recording.inputs import InputSpec, TensorSpec


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
    spec = InputSpec.of(example)
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
        {"args": [{"value": [1]}], "kwargs": {}},
        {"args": [{"spam": 1}], "kwargs": {}},
        {"args": [7], "kwargs": {}},
    ],
)
def test_json_that_is_not_a_spec_is_refused(obj):
    with pytest.raises(ValueError, match="InputSpec: "):
        InputSpec.from_json(obj)
