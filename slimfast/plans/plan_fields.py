"""Read and write the fields of a plan's JSON document, each under the type it must have."""

from __future__ import annotations

from typing import Any

from slimfast.errors import ArgumentError, SlimfastError, shown
from slimfast.graph import InputSpec
from slimfast.plans.costs import Cost
from slimfast.plans.fingerprint import PATTERN
from slimfast.plans.limits import PEAK, is_budget, is_latency
from slimfast.storage.documents import Fields


def cost_to_json(cost: Cost) -> dict[str, int]:
    """Write a cost."""
    return {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}


def cost_from_json(fields: Fields) -> Cost:
    """Read a cost."""
    cost = Cost(fields.integer("params"), fields.integer("macs"), fields.integer("bytes"))
    fields.done()
    return cost


def weights_from_json(fields: Fields) -> str | None:
    """Read the fingerprint of the weights, or null."""
    if fields.is_null("weights"):
        return None
    found = fields.string("weights")
    if not PATTERN.fullmatch(found):
        raise SlimfastError(f"{fields.at('weights')}: expected 32 hexadecimal digits, got {shown(found)}")
    return found


def multiple_from_json(fields: Fields, version: int) -> int | dict[str, int]:
    """Read what widths are multiples of: one number, or one for each glob."""
    if version < 3 or not fields.holds_object("multiple_of"):
        return fields.integer("multiple_of", 1)
    steps = fields.object("multiple_of")
    return {glob: steps.integer(glob, 1) for glob in steps.names()}


def share_from_json(fields: Fields, name: str) -> float | None:
    """Read a share, or null."""
    return None if fields.is_null(name) else fields.number(name, 0.0, 1.0)


def budget_from_json(fields: Fields, version: int) -> dict[str, float]:
    """Read what was asked for, since version 4 of parts too."""
    budget: dict[str, float] = {}
    for name in fields.names():
        known = name in ("explained_variance", "params", "macs") or (version > 3 and is_budget(name))
        known = known and (version > 4 or not is_latency(name)) and (version > 5 or name != PEAK)
        if not known:
            raise SlimfastError(f"{fields.where}: unknown budget {shown(name)}")
        budget[name] = fields.number(name, 0.0, float(2**63))
    return budget


def shapes_from_json(fields: Fields) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor."""
    return {name: fields.integers(name) for name in fields.names()}


def inputs_from_json(value: Any, what: str) -> InputSpec:
    """Read what the network is called with."""
    try:
        return InputSpec.from_json(value)
    except ArgumentError as error:
        raise SlimfastError(f"{what}: inputs: {error}") from None


def outputs_from_json(fields: Fields) -> tuple[str | int, ...]:
    """Read which outputs stay, by name or number."""
    value = fields.raw("outputs")
    if not isinstance(value, list) or not value or any(type(one) not in (str, int) for one in value):
        raise SlimfastError(f"{fields.at('outputs')}: expected names and numbers, got {shown(value)}")
    return tuple(value)


def also_from_json(fields: Fields, what: str) -> tuple[InputSpec, ...]:
    """Read what other calls are made with."""
    value = fields.raw("also")
    if not isinstance(value, list):
        raise SlimfastError(f"{fields.at('also')}: expected a list, got {shown(value)}")
    return tuple(inputs_from_json(call, what) for call in value)
