"""Plans to compare a plan with: the same cost, spent without looking at the spectra."""

from __future__ import annotations

import bisect
import glob
from collections.abc import Mapping
from typing import Literal

import numpy as np

from slimfast.graph import ChannelGraph
from slimfast.plans import Plan, plan_widths
from slimfast.plans.costs import CostModel
from slimfast.spectra.spectrum import Spectrum


def uniform_like(
    plan: Plan,
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    *,
    budget: Literal["macs", "params"] = "macs",
) -> Plan:
    """Keep the same share of the units of every group whose width ``plan`` solved for, at no more MACs than
    it, or no more parameters.

    As close below the cost of ``plan`` as one unit allows: among groups that would get their next unit at the
    same share, those that come first in the graph get it. ``spectra`` only fill in what this plan explains.
    """
    costs = CostModel(graph)
    chosen = [i for i, group in enumerate(plan.groups) if group.chosen in ("tau", "gain")]
    ladder = sorted((unit / plan.groups[i].n, i) for i in chosen for unit in range(2, plan.groups[i].n + 1))
    rungs = np.array([i for _, i in ladder], dtype=np.int64)
    least = costs.vector({group.name: group.width for group in plan.groups})
    least[chosen] = 1

    def cost(height: int) -> int:
        found: int = getattr(costs.cost(least + np.bincount(rungs[:height], minlength=len(least))), budget)
        return found

    limit = getattr(plan.cost_after, budget)
    height = bisect.bisect_right(range(len(ladder) + 1), limit, key=cost) - 1
    widths = least + np.bincount(rungs[:height], minlength=len(least))
    overrides = {glob.escape(group.name): int(w) for group, w in zip(plan.groups, widths, strict=True)}
    return plan_widths(graph, spectra, overrides=overrides)
