"""The rounds of a gradual pruning: cut, let the caller train, cut again, until a budget is met."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from slimfast.arrays import Progress
from slimfast.calibration import calibrate
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line
from slimfast.gradual.carrying import (
    averaged,
    become,
    carry_average,
    carry_optimizer,
    check_average,
    check_scheduler,
)
from slimfast.gradual.rounds_folder import RoundsFolder, check_states
from slimfast.gradual.schedule import Schedule, left_after
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.plans import Plan, plan
from slimfast.plans.limits import Limits, budget_of, options_of
from slimfast.plans.request import WidthOptions
from slimfast.pruning import prune_channels
from slimfast.wrappers import unwrapped

_log = logging.getLogger(__name__)
# Of the progress of a round: calibrated, planned, cut.
_STAGES, _STEPS = 3, 100


@dataclass(slots=True, eq=False)
class Round:
    """A round of :func:`slimfast.rounds`, which unpacks into plan, model and optimizer.

    Attributes:
        number: Of this round, from 1.
        of: How many there are.
        plan: What the network was cut by.
        model: The thin network, to be trained now; put another one of its shapes here where training has made
            one.
        optimizer: The one that was given, which now holds the parameters of the thin network; None where
            there was none.

    Example:
        for plan, thin, optimizer in slimfast.rounds(model, example, macs=0.5, optimizer=optimizer):
            train(thin, optimizer, epochs=2)
    """

    number: int
    of: int
    plan: Plan
    model: nn.Module
    optimizer: Optimizer | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the plan, the model and the optimizer."""
        return iter((self.plan, self.model, self.optimizer))


class Rounds(Iterator[Round]):
    """The rounds of a gradual pruning, one after the other; made by :func:`slimfast.rounds`.

    Attributes:
        of: How many rounds there are.
        plans: Those of the rounds so far.
        in_place: Whether the modules of the first network become those of the thin ones.
        optimizer: What is cut together with the network; may be set where it is made after the rounds.
        scheduler: The scheduler of that, likewise.
        averages: The averaged weights, likewise.

    Example:
        run = slimfast.rounds(model, example, macs=0.5, rounds=3)
        for _, thin, _ in run:
            train(thin)
        slimfast.save(run.model, "thin.safetensors")
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        options: WidthOptions,
        *,
        ways: Sequence[float],
        schedule: Schedule | Sequence[float],
        batches: Iterable[Any] | None,
        trace: Mapping[str, Any],
        measure: Mapping[str, Any],
        optimizer: Optimizer | None,
        scheduler: Any,
        averages: Sequence[nn.Module],
        in_place: bool,
        folder: RoundsFolder | None,
        verify: bool,
        progress: Progress | None,
    ) -> None:
        """Take over the arguments of :func:`slimfast.rounds`, which were checked."""
        self.of, self.plans, self.in_place = len(ways), list[Plan](), in_place
        self.optimizer, self.scheduler, self.averages = optimizer, scheduler, list(averages)
        self._model, self._example, self._options = model, example, options
        self._ways, self._schedule, self._batches = ways, schedule, batches
        self._trace, self._measure = trace, measure
        self._folder, self._verify, self._progress = folder, verify, progress
        self._whole: dict[str, float] = {}
        self._current: Round | None = None
        self._resumed = self._finished = False
        if folder is not None and (found := folder.found()) is not None:
            thin, states = folder.load(found, model)
            self.plans, self._whole = folder.plans(found.cuts), dict(found.whole)
            self._take_over(thin, states)
            self._finished, self._resumed = found.trained, not found.trained

    @property
    def model(self) -> nn.Module:
        """The network as it is now: the last thin one, trained so far as it has been."""
        return self._model if self._current is None else unwrapped(self._current.model)

    def __len__(self) -> int:
        return self.of

    def __next__(self) -> Round:
        """Cut the network as it is now, after the training of the round before."""
        self._model = self.model
        if self._current is not None:
            self.optimizer = self._current.optimizer
        if self._resumed:
            # Its training had begun, at most: it is done from the beginning.
            self._resumed = False
        elif self._finished or len(self.plans) == self.of:
            self._finish()
            raise StopIteration
        else:
            self._go_on()
        self._current = Round(len(self.plans), self.of, self.plans[-1], self._model, self.optimizer)
        return self._current

    def _go_on(self) -> None:
        """Cut once more, and keep what is left."""
        number = len(self.plans) + 1
        check_scheduler(self.scheduler, self.optimizer)
        for average in self.averages:
            check_average(averaged(average), self._model)
        if self._folder is not None:
            # Before the work, and while the network is as it was.
            check_states(self._states())
        made, thin = self._cut(number)
        self._carry(thin)
        self.plans.append(made)
        if self._folder is not None:
            self._folder.write(number, self._whole, self._model, self._states(), plan=made)
        _log.info("round %d of %d: %s", number, self.of, made.cost_after)

    @torch.inference_mode(False)
    def _cut(self, number: int) -> tuple[Plan, nn.Module]:
        """Measure, plan and cut the network as it is now."""
        model = self._model
        graph = trace_channels(model, self._example, **self._trace)
        options = self._options_at(number, graph)
        calibration = None
        if self._batches is not None:
            calibration = calibrate(
                model, graph, self._batches, progress=self._told(number, 0), **self._measure
            )
        how = {name: self._measure[name] for name in ("memory", "backend")}
        made = plan(
            model, graph=graph, calibration=calibration, progress=self._told(number, 1), **how, **options
        )
        thin = prune_channels(
            model,
            made,
            calibration=calibration,
            verify=self._verify,
            example=self._example,
            progress=self._told(number, 2),
            for_training=True,
            **how,
        )
        return made, thin

    def _options_at(self, number: int, graph: ChannelGraph) -> WidthOptions:
        """Make the width options of a round: its own budget, as amounts, and widths by hand in the first."""
        budget = budget_of(self._options)
        if number == 1:
            limits = Limits(graph, budget)
            self._whole = {name: float(whole) for name, whole in limits.whole.items()}
        way = self._ways[number - 1]
        amounts = {}
        for name, asked in budget.items():
            whole = self._whole[name]
            end = whole * asked if asked <= 1 else asked
            amounts[name] = min(whole, left_after(way, self._schedule, whole, end))
        options = cast(WidthOptions, {**self._options, **options_of(amounts)})
        options.pop("within", None)
        if number > 1 and (by_hand := options.get("overrides")):
            # They have the width that they are to have.
            options["overrides"] = dict.fromkeys(by_hand, 1.0)
        return options

    def _told(self, number: int, stage: int) -> Progress | None:
        """Make the progress of a stage part of that of all rounds."""
        progress = self._progress
        if progress is None:
            return None
        before = ((number - 1) * _STAGES + stage) * _STEPS

        def told(done: int, total: int) -> None:
            progress(before + done * _STEPS // max(total, 1), self.of * _STAGES * _STEPS)

        return told

    def _carry(self, thin: nn.Module) -> None:
        """Let the thin network take the place of the one before in all that a training holds."""
        if self.optimizer is not None:
            carry_optimizer(self.optimizer, self._model, thin)
        for average in self.averages:
            carry_average(average, self._model, thin)
        if self.in_place:
            become(self._model, thin)
        else:
            self._model = thin

    def _states(self) -> dict[str, Any]:
        """Take the states of what goes on with the network."""
        held = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        for name, one in held.items():
            if one is not None and not callable(getattr(one, "state_dict", None)):
                raise ArgumentTypeError(
                    f"rounds: expected {'an' if name == 'optimizer' else 'a'} {name} with a state_dict, "
                    f"which the folder keeps, got {type(one).__name__}; give no {name}, or no folder"
                )
        return {name: None if one is None else one.state_dict() for name, one in held.items()} | {
            "averages": [average.state_dict() for average in self.averages]
        }

    def _take_over(self, thin: nn.Module, states: Mapping[str, Any]) -> None:
        """Go on from an earlier run: its network, and the states that :meth:`_states` took."""
        self._carry(thin)
        try:
            for one, name in ((self.optimizer, "optimizer"), (self.scheduler, "scheduler")):
                if (one is None) != (states[name] is None):
                    raise SlimfastError(f"one of both has no {name}")
                if one is not None:
                    one.load_state_dict(states[name])
            for average, state in zip(self.averages, states["averages"], strict=True):
                average.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, SlimfastError) as error:
            raise SlimfastError(
                f"rounds: the training in the folder does not fit this one: {one_line(error)}"
            ) from error

    def _finish(self) -> None:
        """Keep the network after its last training."""
        if self._folder is not None and not self._finished:
            self._folder.write(self.of, self._whole, self._model, self._states(), plan=None)
        self._finished = True
