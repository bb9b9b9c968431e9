"""Plans to compare a plan with: the same cost, spent without looking at the spectra."""

from __future__ import annotations

import bisect
import glob
from collections.abc import Mapping
from typing import Literal

import numpy as np

from slimfast.arrays import IntArray
from slimfast.graph import ChannelGraph
from slimfast.plans import Plan, plan_widths
from slimfast.plans.costs import CostModel
from slimfast.plans.limits import Priced
from slimfast.spectra.spectrum import Spectrum


def uniform_like(
    plan: Plan,
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    *,
    budget: Literal["macs", "params"] = "macs",
    priced: Priced | None = None,
) -> Plan:
    """Keep the same share of the units of every group whose width ``plan`` solved for, at no more MACs than
    it, or no more parameters; or where ``priced`` is given, at no more of what that says.

    As close below the cost of ``plan`` as one unit allows: among groups that would get their next unit at the
    same share, those that come first in the graph get it. ``spectra`` only fill in what this plan explains.
    """
    costs = CostModel(graph)
    chosen = [i for i, group in enumerate(plan.groups) if group.chosen in ("tau", "gain")]
    ladder = sorted((unit / plan.groups[i].n, i) for i in chosen for unit in range(2, plan.groups[i].n + 1))
    rungs = np.array([i for _, i in ladder], dtype=np.int64)
    least = costs.vector({group.name: group.width for group in plan.groups})
    least[chosen] = 1

    def priced_at(widths: IntArray) -> float:
        return float(getattr(costs.cost(widths), budget)) if priced is None else priced.price(widths)

    def cost(height: int) -> float:
        return priced_at(least + np.bincount(rungs[:height], minlength=len(least)))

    limit = priced_at(costs.vector({group.name: group.width for group in plan.groups}))
    height = bisect.bisect_right(range(len(ladder) + 1), limit, key=cost) - 1
    # Time may fall where a width grows, and the search end on a step that is above.
    height = next((below for below in range(height, 0, -1) if cost(below) <= limit), 0)
    widths = least + np.bincount(rungs[:height], minlength=len(least))
    overrides = {glob.escape(group.name): int(w) for group, w in zip(plan.groups, widths, strict=True)}
    return plan_widths(graph, spectra, overrides=overrides)
