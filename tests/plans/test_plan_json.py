"""Plans as JSON: what is written is read back equal, and anything else is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.channel_graphs import chain
from support.plan_cases import SIZES, spectra_of

from slimfast.errors import SlimfastError
from slimfast.graph import InputSpec
from slimfast.plans import GroupPlan, Plan, plan_widths
from slimfast.plans.costs import Cost


def planned(**wishes: Any) -> Plan:
    return plan_widths(chain(SIZES, inputs=30), spectra_of(SIZES), **wishes)


def with_keep(found: Plan) -> Plan:
    groups = tuple(dataclasses.replace(g, keep=tuple(range(g.n - g.width, g.n))) for g in found.groups)
    return dataclasses.replace(found, groups=groups)


def test_json_round_trip_with_selected_units(tmp_path: Path) -> None:
    found = with_keep(planned(params=0.43, multiple_of=2, overrides={"1": 7}))
    found.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == found
    assert again.graph is None
    assert str(again) == str(found)
    assert again.to_json() == found.to_json()
    assert json.loads(found.to_json())["groups"][1]["keep"] == [3, 4, 5, 6, 7, 8, 9]


text = st.text(min_size=1, max_size=8)
costs = st.builds(Cost, *[st.integers(0, 2**62)] * 3)


@st.composite
def group_plans(draw: st.DrawFn) -> GroupPlan:
    n = draw(st.integers(1, 50))
    width = draw(st.integers(1, n))
    keep = draw(st.none() | st.permutations(range(n)).map(lambda order: tuple(sorted(order[:width]))))
    return GroupPlan(
        draw(text),
        draw(text),
        n,
        width,
        draw(st.floats(0, 1)),
        draw(st.booleans()),
        keep,
        draw(st.sampled_from(["float32", "float64", None])),
        draw(st.sampled_from(["tau", "gain", "override", "excluded"])),
        draw(costs),
        draw(costs),
    )


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(group_plans(), max_size=4, unique_by=lambda g: g.name),
    tau=st.none() | st.floats(0, 1),
    budget=st.dictionaries(st.sampled_from(["macs", "params"]), st.floats(1e-9, 1e18)),
    shapes=st.dictionaries(text, st.lists(st.integers(0, 2**40), max_size=4).map(tuple)),
    cost=costs,
    allocation=st.sampled_from(["explained_variance", "marginal_gain"]),
)
def test_any_plan_survives_json(
    groups: list[GroupPlan], tau: float | None, budget: Any, shapes: Any, cost: Cost, allocation: Any
) -> None:
    inputs = InputSpec.of((torch.zeros(2, 3), {"mask": torch.tensor([1, 5])}))
    found = Plan(tuple(groups), tau, budget, 3, cost, cost, shapes, inputs, allocation)
    assert Plan.from_json(found.to_json()) == found


def change(document: Any, path: tuple[Any, ...], value: Any) -> str:
    """The document with the value at a path replaced, or removed where it is ``...``."""
    at = document
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 7, "expected schema 1 to 6 of slimfast.plan, got 7"),
        (("schema",), True, "expected schema 1 to 6 of slimfast.plan, got True"),
        (("schema",), 1, "unknown field 'allocation'"),
        (("allocation",), "other", "allocation: expected one of .*explained_variance.* got 'other'"),
        (("schema",), ..., "field 'schema' is missing"),
        (("kind",), "other", "expected a document of kind 'slimfast.plan', got 'other'"),
        (("kind",), ..., "expected a document of kind 'slimfast.plan', got None"),
        (("extra",), 1, "unknown field 'extra'"),
        (("multiple_of",), 0, r"multiple_of: expected an integer in 1\.\..* got 0"),
        (("multiple_of",), True, "multiple_of: expected an integer .* got True"),
        (("explained_variance",), True, "explained_variance: expected a number .* got True"),
        (("multiple_of",), 1.0, "multiple_of: expected an integer .* got 1.0"),
        (("multiple_of",), 10**30, "multiple_of: expected an integer"),
        (("explained_variance",), 1.1, r"explained_variance: expected a number in 0..1, got 1.1"),
        (("explained_variance",), "0.9", "explained_variance: expected a number"),
        (("budget", "flops"), 3, "unknown budget 'flops'"),
        (("budget",), [], r"budget: expected an object, got \[\]"),
        (("cost_before", "macs"), -1, "cost_before: macs: expected an integer"),
        (("cost_after", "more"), 1, "cost_after: unknown field 'more'"),
        (("groups",), {}, "groups: expected a list, got {}"),
        (("groups", 1, "name"), "0", "group '0' is there twice"),
        (("groups", 1, "name"), None, r"groups\[1\]: name: expected a string, got None"),
        (("groups", 1, "width"), 11, r"groups\[1\]: width: expected an integer in 1..10, got 11"),
        (("groups", 1, "width"), 0, r"groups\[1\]: width"),
        (("groups", 1, "n"), 2**70, r"groups\[1\]: n: expected an integer"),
        (("groups", 1, "certified"), 1, r"groups\[1\]: certified: expected true or false, got 1"),
        (("groups", 1, "explained_variance"), -0.1, r"groups\[1\]: explained_variance"),
        (("groups", 1, "dtype"), "int8", r"groups\[1\]: dtype: expected one of float32, float64, got 'int8'"),
        (("groups", 1, "chosen"), "luck", r"groups\[1\]: chosen: expected one of"),
        (
            ("groups", 1, "keep"),
            [0, 1],
            r"groups\[1\]: keep: expected 7 sorted, distinct units, got 2 indices",
        ),
        (("groups", 1, "keep"), [0, 2, 1, 3, 4, 5, 6], r"keep: expected 7 sorted"),
        (("groups", 1, "keep"), [0, 0, 1, 2, 3, 4, 5], r"keep: expected 7 sorted"),
        (("groups", 1, "keep"), [0, 1, 2, 3, 4, 5, 10], r"keep\[6\]: expected an integer in 0..9, got 10"),
        (("groups", 1, "keep"), "all", "keep: expected a list of integers, got 'all'"),
        (("shapes", "1.weight"), [10, -12], r"shapes: 1.weight\[1\]: expected an integer"),
        (("shapes", "1.weight"), [10, 12.0], r"shapes: 1.weight\[1\]: expected an integer"),
        (("inputs",), 3, "inputs: "),
        (("inputs",), ..., "field 'inputs' is missing"),
    ],
)
def test_a_document_with_something_wrong_is_refused_in_one_line(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    found = with_keep(planned(macs=0.5, overrides={"1": 7}))
    file = tmp_path / "plan.json"
    file.write_text(change(json.loads(found.to_json()), path, value))
    with pytest.raises(SlimfastError, match=message) as error:
        Plan.load(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", r"expected an object, got \[1\]"),
        (b"\xff\xfe\x00", "not a text file"),
        (b'{"kind": "slimfast.plan", "schema": NaN}', "expected finite numbers, got NaN"),
        (b'{"kind": "slimfast.plan", "kind": "slimfast.plan"}', "field 'kind' is there twice"),
        (b'{"kind": "slimfast.plan", "schema": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' * 50_000, "not valid JSON"),
        (b'{"kind": "slimfast.plan", "schema": 1e999}', "expected finite numbers, got .1e999."),
    ],
)
def test_a_file_that_is_no_plan(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(SlimfastError, match=message) as error:
        Plan.load(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(SlimfastError, match=r"cannot read .*missing.json"):
        Plan.load(tmp_path / "missing.json")
    with pytest.raises(SlimfastError, match="cannot write"):
        planned(macs=0.5).save(tmp_path / "missing" / "plan.json")


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, AttributeError])
def test_a_fault_inside_is_not_blamed_on_the_document(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(document: Any) -> None:
        raise kind("a fault")

    document = planned(explained_variance=0.9).to_json()
    monkeypatch.setattr(InputSpec, "from_json", fail)
    with pytest.raises(kind, match="a fault"):
        Plan.from_json(document)
