"""Plan and GroupPlan: one width per channel group, as frozen data, JSON and plain text. The verbs are in
``planning``.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, shown
from slimfast.graph import ChannelGraph, InputSpec
from slimfast.plans.costs import Cost
from slimfast.plans.plan_fields import (
    also_from_json,
    budget_from_json,
    cost_from_json,
    cost_to_json,
    inputs_from_json,
    multiple_from_json,
    outputs_from_json,
    shapes_from_json,
    share_from_json,
    weights_from_json,
)
from slimfast.plans.plan_table import table
from slimfast.plans.plan_text import explanation
from slimfast.plans.predicted import PlanLatency, PlanMemory
from slimfast.storage.atomic import atomic_path
from slimfast.storage.documents import Fields, first_repeated, parse_object, read_text

KIND = "slimfast.plan"
# 2: ``allocation``, and groups chosen by "gain". 3: ``weights``, and groups chosen by
# "mask". 4: budgets of a part. 5: budgets of latency, and ``latency``. 6: those of
# peak memory, and ``peak_memory``. Documents of all of them are read.
SCHEMA = 6

Chosen = Literal["tau", "gain", "override", "mask", "excluded"]
Allocation = Literal["explained_variance", "marginal_gain"]
_CHOSEN: tuple[str, ...] = get_args(Chosen)
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
_DTYPES = ("float32", "float64")
_NOTHING = Cost(0, 0, 0)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The width of one group: how many of its units stay, and why.

    Attributes:
        name: The group's name.
        kind: What its units are.
        n: How many units it has.
        width: How many of them stay.
        explained_variance: The share of their variance that these can explain; 0 where nothing was measured.
        certified: The width is the one float64 arithmetic gives, because float32 settled it or because it was
            measured in float64.
        dtype: The arithmetic of the measurement; None where no spectrum was measured.
        chosen: By what: the network's tau, the gain that the next unit's cost would bring, an override, the
            masks that the network has, or the group was left alone.
        before: The cost of the tensors and operations the group takes part in; groups share those, so that
            these costs add up to more than the network's.
        after: The same with this width.
        keep: The sorted kept units once they are selected.
        note: What else there is to say of them; at hand where the plan was just made, and not written.

    Example:
        [(group.name, group.width) for group in plan.groups if group.width < group.n]
    """

    name: str
    kind: str
    n: int
    width: int
    explained_variance: float
    certified: bool
    keep: tuple[int, ...] | None = None
    dtype: str | None = "float32"
    chosen: Chosen = "tau"
    before: Cost = _NOTHING
    after: Cost = _NOTHING
    note: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """One width per channel group of a network, and all that is needed to apply it to that network, and to no
    other.

    Attributes:
        groups: The width of each group.
        explained_variance: The network's tau; None where there was none: widths given by hand or by marginal
            gain.
        budget: What was asked for.
        multiple_of: What widths are multiples of, or what those of the groups that a glob means are.
        cost_before: What the whole network costs.
        cost_after: What the thin one will.
        shapes: The wide shape of every parameter and buffer by name.
        inputs: What the network is called with.
        allocation: How a budget was spent.
        outputs: Which outputs stay as they are; None: all of them.
        also: What the other calls that were traced are made with.
        weights: The fingerprint of the weights it was made from, where they were at hand; it is not compared.
        latency: What a forward of it takes, predicted and measured, where there was a latency table.
        peak_memory: What a forward of it holds at once, likewise, where there was a memory table.
        graph: At hand where the plan was just made; it is neither compared nor written.

    Example:
        plan = slimfast.plan(model, example, macs=0.5)
        print(plan)
        plan.save("plan.json")
    """

    groups: tuple[GroupPlan, ...]
    explained_variance: float | None
    budget: Mapping[str, float]
    multiple_of: int | Mapping[str, int]
    cost_before: Cost
    cost_after: Cost
    shapes: Mapping[str, tuple[int, ...]]
    inputs: InputSpec
    allocation: Allocation = "explained_variance"
    outputs: tuple[str | int, ...] | None = None
    also: tuple[InputSpec, ...] = ()
    weights: str | None = field(default=None, compare=False)
    latency: PlanLatency | None = field(default=None, compare=False)
    peak_memory: PlanMemory | None = field(default=None, compare=False)
    graph: ChannelGraph | None = field(default=None, compare=False, repr=False)

    def widths(self) -> dict[str, int]:
        """Return group name -> number of units that stay."""
        return {group.name: group.width for group in self.groups}

    def __str__(self) -> str:
        return table(self)

    def explain(self, graph: ChannelGraph | None = None) -> str:
        """Explain what each group couples, and everything that is left alone with its reason.

        A plan read from JSON has no graph of its own: pass the traced one.
        """
        graph = graph or self.graph
        if graph is None:
            raise ArgumentError(
                "explain: expected the graph of the model, for a plan read from JSON does not hold it"
            )
        return explanation(self, graph)

    def to_json(self) -> str:
        """Write the plan as a JSON document, one group a line; the same plan gives the same text."""
        head = {
            "kind": KIND,
            "schema": SCHEMA,
            "allocation": self.allocation,
            "explained_variance": self.explained_variance,
            "budget": dict(self.budget),
            "multiple_of": self.multiple_of if isinstance(self.multiple_of, int) else dict(self.multiple_of),
            "cost_before": cost_to_json(self.cost_before),
            "cost_after": cost_to_json(self.cost_after),
            "weights": self.weights,
            "latency": None if self.latency is None else self.latency.to_json(),
            "peak_memory": None if self.peak_memory is None else self.peak_memory.to_json(),
            "inputs": self.inputs.to_json(),
        }
        if self.outputs is not None:
            head["outputs"] = list(self.outputs)
        if self.also:
            head["also"] = [call.to_json() for call in self.also]
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()]
        groups = ",\n".join(f"  {json.dumps(_group_to_json(g), allow_nan=False)}" for g in self.groups)
        shapes = ",\n".join(f"  {json.dumps(name)}: {list(shape)}" for name, shape in self.shapes.items())
        return ",\n".join(
            ["{" + lines[0], *lines[1:], f'"groups": [\n{groups}\n]', f'"shapes": {{\n{shapes}\n}}}}\n']
        )

    @staticmethod
    def from_json(text: str | bytes, *, what: str = "plan") -> Plan:
        """Read the plan in a JSON document; one line of :class:`SlimfastError` for whatever is wrong with
        it.
        """
        fields = parse_object(text, what)
        allocation: Any = "explained_variance"
        version = fields.schema(KIND, SCHEMA, oldest=1)
        if version > 1:
            allocation = fields.string("allocation", ALLOCATIONS)
        plan = Plan(
            allocation=allocation,
            weights=weights_from_json(fields) if version > 2 else None,
            latency=PlanLatency.from_json(fields) if version > 4 else None,
            peak_memory=PlanMemory.from_json(fields) if version > 5 else None,
            groups=tuple(_group_from_json(item) for item in fields.objects("groups")),
            explained_variance=share_from_json(fields, "explained_variance"),
            budget=budget_from_json(fields.object("budget"), version),
            multiple_of=multiple_from_json(fields, version),
            cost_before=cost_from_json(fields.object("cost_before")),
            cost_after=cost_from_json(fields.object("cost_after")),
            shapes=shapes_from_json(fields.object("shapes")),
            inputs=inputs_from_json(fields.raw("inputs"), what),
            outputs=outputs_from_json(fields) if version > 2 and fields.has("outputs") else None,
            also=also_from_json(fields, what) if version > 2 and fields.has("also") else (),
        )
        fields.done()
        twice = first_repeated(group.name for group in plan.groups)
        if twice is not None:
            raise SlimfastError(f"{what}: group {shown(twice)} is there twice")
        return plan

    @staticmethod
    def of(plan: Plan | str | os.PathLike[str]) -> Plan:
        """Return a plan itself, or load the one in the file of that path; ``TypeError`` for all else."""
        if isinstance(plan, Plan):
            return plan
        if isinstance(plan, (str, os.PathLike)):
            return Plan.load(plan)
        raise ArgumentTypeError(f"plan: expected a Plan or the path of one, got {type(plan).__name__}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Load the plan in a file; errors as in :meth:`from_json`, naming the file."""
        return Plan.from_json(read_text(path), what=os.fspath(path))


def _group_to_json(group: GroupPlan) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "n": group.n,
        "width": group.width,
        "explained_variance": group.explained_variance,
        "certified": group.certified,
        "dtype": group.dtype,
        "chosen": group.chosen,
        "before": cost_to_json(group.before),
        "after": cost_to_json(group.after),
        "keep": None if group.keep is None else list(group.keep),
    }


def _group_from_json(fields: Fields) -> GroupPlan:
    n = fields.integer("n", 1)
    width = fields.integer("width", 1, n)
    chosen: Any = fields.string("chosen", _CHOSEN)
    group = GroupPlan(
        name=fields.string("name"),
        kind=fields.string("kind"),
        n=n,
        width=width,
        explained_variance=fields.number("explained_variance", 0.0, 1.0),
        certified=fields.boolean("certified"),
        keep=None if fields.is_null("keep") else _keep_from_json(fields, n, width),
        dtype=None if fields.is_null("dtype") else fields.string("dtype", _DTYPES),
        chosen=chosen,
        before=cost_from_json(fields.object("before")),
        after=cost_from_json(fields.object("after")),
    )
    fields.done()
    return group


def _keep_from_json(fields: Fields, n: int, width: int) -> tuple[int, ...]:
    keep = fields.integers("keep", 0, n - 1)
    if len(keep) != width or any(a >= b for a, b in itertools.pairwise(keep)):
        raise SlimfastError(
            f"{fields.where}: keep: expected {width} sorted, distinct units, got {len(keep)} indices"
        )
    return keep
