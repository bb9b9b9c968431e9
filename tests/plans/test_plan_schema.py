"""Plans as JSON: every version has a published schema, and documents of every version are read."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fuzz import structure
from hypothesis import HealthCheck, given, settings
from support import plan_schemas
from support.paths import TESTS
from torch import nn

import slimfast
from slimfast import Cost, GroupPlan, Plan, SlimfastError
from slimfast.graph import InputSpec
from slimfast.plans.plan_data import SCHEMA

DOCUMENTS = TESTS / "data"
SHAPES = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}


def document(version: int) -> str:
    """A plan of that version, written by hand after the schema."""
    return (DOCUMENTS / f"plan-{version}.json").read_text()


def expected(version: int) -> Plan:
    first = version == 1
    group = GroupPlan(
        name="0",
        kind="channel",
        n=8,
        width=4,
        explained_variance=0.91,
        certified=True,
        keep=(0, 2, 5, 7) if first else None,
        dtype="float64",
        chosen="tau" if first else "gain",
        before=Cost(80, 72, 320),
        after=Cost(40, 36, 160),
    )
    return Plan(
        groups=(group,),
        explained_variance=0.9 if first else None,
        budget={4: {"params of 0": 0.6}, 5: {"latency": 0.5}, 6: {"latency": 0.5, "peak_memory": 0.75}}.get(
            version, {"params": 0.6}
        ),
        multiple_of=1,
        cost_before=Cost(83, 72, 332),
        cost_after=Cost(43, 36, 172),
        shapes=SHAPES,
        inputs=InputSpec.of(torch.zeros(1, 6)),
        allocation="explained_variance" if first else "marginal_gain",
    )


def test_every_version_up_to_this_one_is_published() -> None:
    assert list(range(1, SCHEMA + 1)) == plan_schemas.VERSIONS


@pytest.mark.parametrize("version", plan_schemas.VERSIONS)
def test_a_document_of_each_version_is_read_and_written_as_the_newest(version: int) -> None:
    text = document(version)
    plan_schemas.check(text)
    plan = Plan.from_json(text)
    assert plan == expected(version)
    migrated = plan.to_json()
    assert json.loads(migrated)["schema"] == SCHEMA
    plan_schemas.check(migrated)
    assert Plan.from_json(migrated) == plan


@pytest.mark.parametrize("version", plan_schemas.VERSIONS)
def test_a_document_of_each_version_prunes_its_network(version: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = Plan.from_json(document(version))
    # The document's weights are nobody's.
    with pytest.warns(UserWarning, match="other weights") if version > 2 else nullcontext():
        thin = slimfast.prune_channels(model, plan)
    assert thin[0].weight.shape == (4, 6)
    if version == 1:
        torch.testing.assert_close(thin[0].weight, model[0].weight[[0, 2, 5, 7]], rtol=0, atol=0)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(structure.TARGETS["plan-fields"][1])
def test_what_is_read_follows_the_schema(text: str) -> None:
    try:
        Plan.from_json(text)
    except SlimfastError:
        return
    plan_schemas.check(text)


WRONG: list[tuple[tuple[Any, ...], Any]] = [
    (("schema",), 7),
    (("weights",), "luck"),
    (("weights",), 7),
    (("kind",), "plan"),
    (("extra",), 1),
    (("allocation",), "luck"),
    (("explained_variance",), 1.5),
    (("budget", "flops"), 1),
    (("latency",), 3),
    (("latency", "measured"), -1.0),
    (("latency", "more"), 1),
    (("budget", "latency of 0"), 1),
    (("budget", "params of "), 1),
    (("budget", "macs"), -1),
    (("multiple_of",), 0),
    (("cost_after", "macs"), 2**63),
    (("cost_after", "more"), 1),
    (("groups", 0, "n"), 0),
    (("groups", 0, "width"), "4"),
    (("groups", 0, "dtype"), "int8"),
    (("groups", 0, "chosen"), "luck"),
    (("groups", 0, "keep"), []),
    (("groups", 0, "keep"), [1, 1, 2, 3]),
    (("groups", 0, "more"), 1),
    (("shapes", "0.weight"), [8, -6]),
    (("inputs",), {"args": []}),
    (("inputs", "args", 0), {"tensor": {"shape": [1], "dtype": "float32", "more": 1}}),
    (("inputs", "args", 0), {"tensor": {"shape": [1], "dtype": "float32"}, "value": 1}),
    (("inputs", "args", 0), {"tuple": [{"list": [{"dict": {"a": {"value": []}}}]}]}),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_schema_and_reader_refuse_the_same(path: tuple[Any, ...], value: Any) -> None:
    wrong = json.loads(document(SCHEMA))
    at = wrong
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert not plan_schemas.validator(SCHEMA).is_valid(wrong)
    with pytest.raises(SlimfastError):
        Plan.from_json(json.dumps(wrong))


class _Holder:
    """An argument that is an object."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(2)


def test_nests_of_arguments_follow_the_schema() -> None:
    tokens = torch.tensor([5, 9])
    seen = tokens > 6
    nest = {"a": (tokens, [1, "x", None, True, 0.5]), "b": {"c": torch.zeros(()), "d": [seen, _Holder()]}}
    plan = dataclasses.replace(expected(SCHEMA), inputs=InputSpec.of(nest))
    plan_schemas.check(plan.to_json())
