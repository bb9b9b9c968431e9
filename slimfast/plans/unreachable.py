"""Say why a budget cannot be reached: what stays whole for which reason, and what could be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.propagation.reasons import Reason
from slimfast.plans.request import Choice, Request

# The reasons that are told, from the one that most parameters stay for.
_TOLD = 3
_SMALL = 0.02


def why_unreachable(graph: ChannelGraph, choices: Sequence[Choice], request: Request) -> str:
    """List what most of the parameters that no group can change stay for, and the remedies there are.

    Args:
        graph: The network.
        choices: How each of its groups gets its width.
        request: What was asked for.

    Returns:
        One line.
    """
    sizes = {
        name: prod(axis.length for axis in axes)
        for name, axes in graph.axes.items()
        if name in graph.parameters and name not in graph.tied
    }
    total = max(sum(sizes.values()), 1)
    whole = {name for name in sizes if not any(axis.places for axis in graph.axes[name])}
    reasons: dict[str, str] = {}
    for frozen in graph.frozen:
        if frozen.tensor in whole:
            reasons.setdefault(frozen.tensor, frozen.reason)
    counts: Counter[str] = Counter()
    for name, reason in reasons.items():
        counts[reason] += sizes[name]
    said = [
        f"{count / total:.0%} of the parameters stay whole: {reason} ({_first(reasons, reason)})"
        for reason, count in counts.most_common(_TOLD)
        if count >= _SMALL * total
    ]
    excluded = [g.name for g, c in zip(graph.groups, choices, strict=True) if c.chosen == "excluded"]
    if excluded:
        said.append(f"{len(excluded)} groups are left alone: excluded, or without a spectrum ({excluded[0]})")
    return "; ".join(said + _remedies(set(counts), request))


def _first(reasons: dict[str, str], reason: str) -> str:
    names = [name for name, own in reasons.items() if own == reason]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _remedies(reasons: set[str], request: Request) -> list[str]:
    found = []
    if request.multiple_of != 1 or request.min_width > 1:
        found.append("a smaller multiple_of or min_width")
    if request.include is not None or request.exclude:
        found.append("fewer groups excluded")
    if Reason.NETWORK_OUTPUT.text in reasons:
        found.append("outputs=, where not all that is returned has to stay")
    if Reason.NOT_USED.text in reasons:
        found.append("an example of each call (Examples), where this one leaves layers out")
    return [f"what may help: {', '.join(found)}"] if found else []
