"""The verb that makes a network shorter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration.forward import Slice
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.graph.trace import trace_channels
from slimfast.plans.limits import budget_of
from slimfast.pruning.depth.choosing import (
    Least,
    Parts,
    Unit,
    dropped_of,
    emptied,
    named_units,
    units_of,
)
from slimfast.pruning.depth.described import without_layers
from slimfast.pruning.depth.divergence import Divergence, first_samples, influences, samples_of
from slimfast.pruning.depth.looking import compare, look, reasons_of, shorter_network
from slimfast.pruning.depth.report import DepthReport, Score, attach_depth_report
from slimfast.pruning.depth.savings import Savings
from slimfast.pruning.depth.shorter import Names
from slimfast.pruning.depth.stacks import Stack
from slimfast.pruning.depth.writers import gaps_of, mend
from slimfast.pruning.manifests import attach, manifest
from slimfast.wrappers import unwrapped

# What the layers that go are chosen by.
Choice: TypeAlias = Literal["divergence", "influence"]
# Samples on which divergences are measured.
SAMPLES = 8


@torch.inference_mode(False)
def drop_layers(
    model: nn.Module,
    example: Any,
    *,
    calibration: Any = None,
    layers: Iterable[str] | int | None = None,
    params: Any = None,
    macs: Any = None,
    within: Iterable[str] | str | None = None,
    parts: Parts = "layers",
    by: Choice = "divergence",
    repair: bool = True,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> nn.Module:
    """Make a network shorter: take out the residual layers that its output misses least.

    A layer is an element of a ``ModuleList`` or ``Sequential`` whose output is what it read plus what its
    branches (attention, MLP, convolutions) add to it. Without its branches it does nothing, so that it can go
    whole, and the list is shorter by one; a branch that goes alone leaves a stub that adds zeros. Attributes
    that number layers (``layer_idx`` of caches) or count them (``num_hidden_layers``, ``layer_types``)
    follow, so that ``generate`` works and a stock class loads what :func:`slimfast.save_pretrained` writes.
    Names change with the numbers: :func:`slimfast.trace_channels` and :func:`slimfast.calibrate` what is
    returned, before its widths are cut as those of any network.

    Layers go one after another. What each costs is the divergence of the network without it from the deep
    one (of next tokens or classes in nats, else a share of the output's energy), for what it saves; after
    the first the next in line are measured again without those that are gone. ``by="influence"`` takes, in
    one forward, the layers whose output is most like their input (block influence: ShortGPT, Men et al.,
    2024).

    What stands before a gap is then solved for by least squares: the product by which the last branch before
    it writes into the stream makes up for what the stream misses behind it, with the mean in its bias where
    it has one. Where none stands there, or no product writes (a norm behind it, as in most ResNets and in
    BERT), nothing is changed, and the report says so.

    Args:
        model: The network; one that was thinned before is fine.
        example: A tensor, a tuple or a dict of its arguments.
        calibration: From :func:`slimfast.calibrate`, or batches as it takes them; masks of padding count.
            Needed unless ``layers`` are named and ``repair`` is off.
        layers: How many go, or the names of those that do: of layers ("model.layers.20") or branches
            ("model.layers.20.mlp").
        params: As many go as bring the parameters down to this: a share or a number, as for
            :func:`slimfast.plan`.
        macs: The same of multiply-adds; both may be given, and neither beside ``layers``.
        within: The budget counts these layers and tensors alone, a glob or several.
        parts: Whether whole "layers" go, or "branches", attention and MLP apart; the stock class of a
            transformer has no layers without a branch.
        by: How they are chosen: by "divergence" or "influence".
        repair: Whether to solve for what stands before the gaps.
        samples: So many samples measure divergences; a repair sees all.
        progress: Called with the networks measured and gaps mended, and of how many.

    Returns:
        The shorter network, in the mode of ``model``, which is untouched. :func:`slimfast.manifest` knows
        what it has not, :func:`slimfast.save` and :func:`slimfast.load` keep it, and
        :func:`slimfast.depth_report` says how layers were chosen and what was mended.

    Raises:
        ValueError: For wrong arguments, and for a layer that cannot go, with the reason: a shortcut that
            computes (downsampling), an output that others read too (the skips of a U-Net), weights that are
            shared.
        SlimfastError: For a budget that cannot be reached, and where the shorter network does not compute
            what the deep one does with those layers bypassed.

    Example:
        short = slimfast.drop_layers(model, example, calibration=batches, layers=3)
        print(slimfast.depth_report(short))
    """
    model, inputs = unwrapped(model), arguments(example)
    budget = _budget(layers, params, macs, within, parts, by, samples)
    stacks, returns = look(model, inputs)
    named = None if layers is None or isinstance(layers, int) else _listed(layers)
    slices: list[Slice] = []
    if repair or named is None:
        if calibration is None:
            raise ArgumentError(
                "drop_layers: expected calibration (batches of the model's inputs), got none; layers "
                "that are named need none with repair=False"
            )
        slices = samples_of(calibration, model, example, "drop_layers")
    tell = _Telling(progress)
    scores: dict[str, Score] = {}
    divergence = None
    if named is not None:
        chosen = named_units(stacks, named)
    else:
        units = units_of(stacks, parts)
        if not units:
            raise SlimfastError(
                f"drop_layers: {type(model).__name__} has no {parts} that can go{reasons_of(stacks)}"
            )
        choice = _Choice(model, stacks, units, returns, first_samples(slices, samples), by, tell)
        graph = trace_channels(model, example, include=()) if budget else None
        chosen = choice.units(Savings(graph, budget), layers if isinstance(layers, int) else None)
        scores, divergence = choice.scores, choice.divergence(chosen)
    dropped, gone = dropped_of(stacks, chosen, returns)
    if (path := emptied(stacks, dropped)) is not None:
        raise ArgumentError(f"drop_layers: expected a layer of {path} to stay, got all of them dropped")
    short = shorter_network(model, dropped)
    error = compare(model, short, dropped, inputs) if dropped else 0.0
    gaps, left = gaps_of(stacks, gone, Names(dropped)) if repair else ([], [])
    tell.more(len(gaps))
    mended = mend(model, short, gaps, slices, tell.one)
    held = named_tensors(short)
    moved = [f"{each.writer}.{kind}" for each in mended for kind in ("weight", "bias") if each.moved]
    attach(short, without_layers(manifest(model), dropped, short, [name for name in moved if name in held]))
    names = tuple(unit.name for unit in chosen)
    attach_depth_report(short, DepthReport(names, scores, divergence, tuple(mended), tuple(left), error))
    return short


def _listed(layers: Iterable[str] | str) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers)


def _budget(
    layers: Iterable[str] | int | None,
    params: Any,
    macs: Any,
    within: Iterable[str] | str | None,
    parts: str,
    by: str,
    samples: int,
) -> dict[str, float]:
    """Check what was asked for, and read the budget; none where layers are given."""
    for name, value, known in (
        ("parts", parts, ("layers", "branches")),
        ("by", by, ("divergence", "influence")),
    ):
        if value not in known:
            raise ArgumentError(
                f"drop_layers: expected {name} {' or '.join(map(repr, known))}, got {value!r}"
            )
    if isinstance(layers, bool) or (isinstance(layers, int) and layers < 1):
        raise ArgumentError(f"drop_layers: expected layers to be names or a number >= 1, got {layers!r}")
    if not isinstance(samples, int) or samples < 1:
        raise ArgumentError(f"drop_layers: expected samples >= 1, got {samples!r}")
    given = {
        name: value
        for name, value in (("params", params), ("macs", macs), ("within", within))
        if value is not None
    }
    if layers is not None:
        if given:
            raise ArgumentError(
                f"drop_layers: expected layers or a budget, got both layers and {', '.join(given)}"
            )
        return {}
    found = budget_of(given)
    if not found:
        raise ArgumentError("drop_layers: expected layers, params or macs, got none of them")
    return found


class _Telling:
    """Progress of a number of steps that grows."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._done, self._of = progress, 0, 0

    def more(self, steps: int) -> None:
        """Expect so many steps more."""
        self._of += steps

    def one(self) -> None:
        """Tell of a step."""
        self._done += 1
        self._of = max(self._of, self._done)
        if self._progress is not None:
            self._progress(self._done, self._of)


class _Choice:
    """What can go, each measured alone, and the choice among it."""

    def __init__(
        self,
        model: nn.Module,
        stacks: Sequence[Stack],
        units: Mapping[str, Unit],
        returns: Mapping[str, int],
        slices: Sequence[Slice],
        by: Choice,
        tell: _Telling,
    ) -> None:
        self._stacks, self._units, self._returns, self._tell = stacks, units, returns, tell
        self._measured = Divergence(model, slices)
        self._by_output = by == "divergence"
        tell.more(len(units) if self._by_output else 1)
        alike = influences(model, list(dict.fromkeys(unit.block for unit in units.values())), slices)
        self.scores = {
            name: Score(alike[unit.block], self.divergence([unit]) if self._by_output else None)
            for name, unit in units.items()
        }

    def divergence(self, units: Sequence[Unit]) -> float:
        """Measure the network without these."""
        self._tell.one()
        return self._measured.without(dropped_of(self._stacks, units, self._returns)[0])

    def units(self, savings: Savings, count: int | None) -> list[Unit]:
        """Choose the units that go, until as many are gone or the budget is met."""
        costs = {
            name: score.influence if score.divergence is None else score.divergence
            for name, score in self.scores.items()
        }
        again = self.divergence if self._by_output else None
        least = Least(list(self._units.values()), costs, savings.of, again)
        while len(least.taken) < count if count is not None else not savings.met(least.taken):
            if not least.take(lambda unit: self._leaves_one([*least.taken, unit])):
                missed = f"{count} that go" if count is not None else savings.missed(least.taken)
                raise SlimfastError(
                    f"drop_layers: expected {missed}, got {len(least.taken)}: one layer of each list stays"
                    f"{reasons_of(self._stacks)}"
                )
        return least.taken

    def _leaves_one(self, units: Sequence[Unit]) -> bool:
        return emptied(self._stacks, dropped_of(self._stacks, units, self._returns)[0]) is None
