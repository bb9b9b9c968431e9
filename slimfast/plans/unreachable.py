"""Say why a budget cannot be reached: what stays whole for which reason, and what could be done."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from slimfast.graph.channel_graph import Axis, ChannelGraph
from slimfast.graph.propagation.reasons import Reason
from slimfast.plans.multiples import too_narrow
from slimfast.plans.request import Choice, Request

# The reasons that are told, from the one that most parameters stay for.
_TOLD = 3
_SMALL = 0.02
_INTERFACE = {Reason.NETWORK_INPUT.text, Reason.NETWORK_OUTPUT.text}
# The reason of an operation that has no rule is its name.
_OPERATION = re.compile(r"\w+\.\w+")


def why_unreachable(graph: ChannelGraph, choices: Sequence[Choice], request: Request) -> str:
    """List what most of the parameters stay for where every group has its least width, and the remedies.

    Args:
        graph: The network.
        choices: How each of its groups gets its width.
        request: What was asked for.

    Returns:
        One line.
    """
    # The share of its units that each group keeps at least.
    least = {
        group.name: (1 if choice.chosen in ("tau", "gain") else choice.width) / group.n
        for group, choice in zip(graph.groups, choices, strict=True)
    }
    owned = [name for name in graph.axes if name in graph.parameters and name not in graph.tied]
    total = max(sum(prod(axis.length for axis in graph.axes[name]) for name in owned), 1)
    left = {name: prod(_least_length(axis, least) for axis in graph.axes[name]) for name in owned}
    reasons = _reasons(graph)
    counts: Counter[str] = Counter()
    for name, reason in reasons.items():
        counts[reason] += round(left.get(name, 0))
    told = [(reason, count) for reason, count in counts.most_common(_TOLD) if count >= _SMALL * total]
    said = [
        f"{count / total:.0%} of the parameters stay whole: {reason} ({_first(reasons, reason, left)})"
        for reason, count in told
    ]
    excluded = [g.name for g, c in zip(graph.groups, choices, strict=True) if c.chosen == "excluded"]
    if excluded:
        asked = request.include is not None or bool(request.exclude)
        unseen = "not measured, for no module was called by whose weight they are made or read"
        why = f"excluded, or {unseen}" if asked else unseen
        said.append(f"{_counted(excluded, 'are', 'is')} left alone: {why} ({excluded[0]})")
    narrow = too_narrow(graph, request.multiple_of)
    stuck = [name for name in narrow if least[name] < 1]
    if stuck:
        said.append(
            f"{_counted(stuck, 'stay', 'stays')} whole, for no narrower width is a multiple of "
            f"{narrow[stuck[0]]} ({stuck[0]})"
        )
    return "; ".join(said + remedies([reason for reason, _ in told], request))


def _counted(names: Sequence[str], plural: str, singular: str) -> str:
    return f"{len(names)} groups {plural}" if len(names) > 1 else f"1 group {singular}"


def _least_length(axis: Axis, least: Mapping[str, float]) -> float:
    return sum(count * prod(least[name] for name in names) for names, count in axis.terms().items())


def _reasons(graph: ChannelGraph) -> dict[str, str]:
    """Find for each tensor why the longest dim that it cannot lose stays, by its name.

    What the network is given and returns counts where nothing else does.
    """
    best: dict[str, tuple[bool, int]] = {}
    reasons: dict[str, str] = {}
    for frozen in graph.frozen:
        length = graph.axes[frozen.tensor][frozen.dim].length
        rank = (frozen.reason not in _INTERFACE, length)
        if length > 1 and rank > best.get(frozen.tensor, (False, 0)):
            best[frozen.tensor], reasons[frozen.tensor] = rank, frozen.reason
    return reasons


def _first(reasons: Mapping[str, str], reason: str, left: Mapping[str, float]) -> str:
    """Name the tensor that keeps the most for a reason, and count the others."""
    names = sorted((n for n, own in reasons.items() if own == reason and n in left), key=lambda n: -left[n])
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def remedies(reasons: Iterable[str], request: Request) -> list[str]:
    """List what may help where axes stay whole for these reasons: one part of a line, or none."""
    given = set(reasons)
    found = []
    if request.multiple_of != 1 or request.min_width != 1:
        found.append("a smaller multiple_of or min_width")
    if request.include is not None or request.exclude:
        found.append("fewer groups excluded")
    if Reason.NETWORK_OUTPUT.text in given:
        found.append("outputs=, where not all that is returned has to stay")
    if Reason.NOT_USED.text in given:
        unused = "what no call uses can be deleted from the model"
        found.append(f"also=, examples of other calls that use what this one leaves out ({unused})")
    unknown = sorted(reason for reason in given if _OPERATION.fullmatch(reason))
    if unknown:
        found.append(f"slimfast.register_rule({unknown[0]!r}, ...), where another operation is like it")
    return [f"what may help: {', '.join(found)}"] if found else []
