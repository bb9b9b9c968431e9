"""The cut of ``slim``: layers that go, heads that are rotated, a plan of widths, and the thin network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration import Calibration, calibrate
from slimfast.calibration.again import calibrated_again, check_repeatable
from slimfast.cli.console import tell
from slimfast.cli.curves import measured_curves
from slimfast.cli.data import Data
from slimfast.cli.option_groups import Cut
from slimfast.errors import ArgumentError, Cancelled, SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans import Plan
from slimfast.plans import plan as make_plan
from slimfast.pruning.depth.mixed import check_depth, slim_to_depth
from slimfast.pruning.depth.report import DepthReport, depth_report
from slimfast.pruning.rotation.report import RotationReport, rotation_report
from slimfast.pruning.rotation.rotate import rotate_heads


def calibrated_by(
    data: Data,
    network: nn.Module,
    example: Any,
    samples: int,
    traced: Mapping[str, Any],
    *,
    seed: int,
    backend: str,
    progress: Progress,
) -> Calibration | None:
    """Measure what a network reads of some training samples; None for none, where the training would miss
    them, and where they cannot be measured, which is told. The same ones are taken each time, and the
    training's own order stays as it is.
    """
    if samples == 0:
        return None
    if isinstance(data.train, Iterator):
        tell(
            "not calibrated: the training batches can be read once only; --calibration takes what "
            "'slimfast calibrate' wrote"
        )
        return None
    graph = trace_channels(network, example, **traced)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return calibrate(network, graph, data.train, samples=samples, backend=backend, progress=progress)
        except Cancelled:
            raise
        except (SlimfastError, ArgumentError) as error:
            tell(f"not calibrated, so that the weights alone decide (--samples 0 asks for that): {error}")
            return None


@dataclass(frozen=True, slots=True)
class Made:
    """What a thin network was made by: its plan, the curves of it, where they are to be shown, and what was
    done before, where it was.
    """

    plan: Plan
    curves: Mapping[str, Any]
    depth: DepthReport | None
    rotation: RotationReport | None

    def reports(self) -> list[str]:
        """Say what was done before widths were cut."""
        return [str(report) for report in (self.depth, self.rotation) if report is not None]

    def tell_of_plan(self) -> None:
        """Say what network the plan is of, where that is not the one that was given, and what it leaves."""
        done = ["without the layers that went"] if self.depth is not None else []
        done += ["with rotated heads"] if self.rotation is not None else []
        if done:
            tell(f"plan.json is of the network {' and '.join(done)}: do not prune the original by it")
        if self.rotation is not None:
            cut = [group.name for group in self.plan.groups if group.width < group.n]
            if not self.rotation.losses.keys() & set(cut):
                tell("no group of rotated head dims is cut: --rotate-heads was of no use")


@dataclass(frozen=True, slots=True)
class Slimming:
    """How a network is made thin; ``numbers``: how many layers go, all of which are tried; ``curves``: those
    of the plan are wanted.
    """

    example: Any
    cut: Cut
    numbers: Sequence[int]
    rotated: bool
    outputs: list[str | int] | None
    also: Iterable[Any]
    curves: bool
    backend: str
    progress: Progress
    _made: WeakKeyDictionary[nn.Module, Made] = field(default_factory=WeakKeyDictionary)

    def __call__(
        self, network: nn.Module, calibration: Calibration | None, wanted: Mapping[str, Any]
    ) -> tuple[nn.Module, Made]:
        """Make the thin network; ``wanted``: the keywords of ``plan``."""
        if self.rotated and calibration is not None:
            check_repeatable(calibration, "rotated heads")
        if not self.numbers:
            thin = self._cut(network, calibration, wanted)
            return thin, self._made[thin]
        numbers = check_depth(self.numbers, calibration, wanted)
        assert calibration is not None, "it was checked"

        def cut_widths(short: nn.Module, own: Calibration, rest: Mapping[str, Any]) -> nn.Module:
            return self._cut(short, own, rest, depth=None if short is network else depth_report(short))

        thin = slim_to_depth(network, self.example, numbers, calibration, wanted, cut_widths, self.progress)
        made = self._made[thin]
        if len(numbers) > 1:
            taken = 0 if made.depth is None else len(made.depth.dropped)
            tried = f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
            tell(f"of {tried} layers fewer, {taken} is nearest to the original")
        return thin, made

    def _cut(
        self,
        network: nn.Module,
        calibration: Calibration | None,
        wanted: Mapping[str, Any],
        depth: DepthReport | None = None,
    ) -> nn.Module:
        rotation = None
        if self.rotated:
            network = rotate_heads(network, self.example, calibration=calibration, also=self.also)
            rotation = rotation_report(network)
        graph = trace_channels(network, self.example, outputs=self.outputs, also=self.also)
        if rotation is not None and calibration is not None:
            # What the layers behind the heads read is another.
            calibration = calibrated_again(network, graph, calibration, progress=self.progress)
        known: dict[str, Any] = {}
        if self.curves:
            by_gain = calibration if wanted.get("explained_variance") is None else None
            known = measured_curves(network, graph, by_gain, self.backend, self.progress)
        plan = make_plan(
            network,
            self.example,
            graph=graph,
            calibration=calibration,
            backend=self.backend,
            progress=self.progress,
            **known,
            **wanted,
        )
        thin = self.cut.apply(network, plan, calibration, self.backend)
        self._made[thin] = Made(plan, next(iter(known.values()), {}), depth, rotation)
        return thin
