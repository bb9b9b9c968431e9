"""What was found and done when a network was made shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from slimfast.errors import SlimfastError
from slimfast.pruning.depth.writers import Mended
from slimfast.wrappers import unwrapped

_ATTRIBUTE = "_slimfast_depth"


@dataclass(frozen=True, slots=True)
class Score:
    """How little a layer, or the layer of a branch, changes what it reads (``influence``: 1 - cosine), and
    what the output loses without it alone (``divergence``, None where that was not measured).
    """

    influence: float
    divergence: float | None


@dataclass(frozen=True, slots=True)
class DepthReport:
    """What :func:`slimfast.drop_layers` did.

    Attributes:
        dropped: The layers and branches that went, in the order of their choice, by their names in the deep
            network.
        scores: Of all that could go; empty where they were named.
        divergence: Of the network without them, before the repair; None where it was not measured.
        mended: The layers that were solved for to make up for them.
        left: Gaps that were not mended, and why.
        max_error: The largest difference from the deep network with them bypassed, as a share of its largest
            output, before the repair.

    Example:
        print(slimfast.depth_report(short))
    """

    dropped: tuple[str, ...]
    scores: Mapping[str, Score]
    divergence: float | None
    mended: tuple[Mended, ...]
    left: tuple[str, ...]
    max_error: float

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        told = "" if self.divergence is None else f": off by {self.divergence:.3g} before the repair"
        yield f"dropped {len(self.dropped)}{told}"
        for name in self.dropped:
            score = self.scores.get(name)
            alone = (
                "" if score is None or score.divergence is None else f", off by {score.divergence:.3g} alone"
            )
            yield f"  {name}" + ("" if score is None else f": influence {score.influence:.3g}{alone}")
        for each in self.mended:
            yield f"  {each.writer} mended: the stream misses {each.before:.2%}, now {each.after:.2%}"
        yield from (f"  not mended: {reason}" for reason in self.left)


def attach_depth_report(short: nn.Module, report: DepthReport) -> None:
    """Keep a report with its network."""
    object.__setattr__(short, _ATTRIBUTE, report)


def depth_report(short: nn.Module) -> DepthReport:
    """Tell how the layers of a shorter network were chosen, and what was mended.

    Args:
        short: What :func:`slimfast.drop_layers` returned.

    Returns:
        Its report.

    Raises:
        SlimfastError: For any other network.

    Example:
        print(slimfast.depth_report(short))
    """
    found = vars(unwrapped(short)).get(_ATTRIBUTE)
    if not isinstance(found, DepthReport):
        raise SlimfastError(
            f"{type(short).__name__}: expected a network of drop_layers, got one of another making"
        )
    return found
