"""Gradual pruning inside the trainings of Hugging Face and of Lightning."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, one_line
from slimfast.gradual.runs import Rounds

_log = logging.getLogger(__name__)


class _Cuts:
    """Cuts the network that a trainer holds, in place, when a step is reached."""

    def __init__(self, rounds: Rounds, steps: Iterable[int], on_cut: Callable[[Any], None] | None) -> None:
        if not isinstance(rounds, Rounds):
            raise ArgumentTypeError(f"callback: expected slimfast.rounds(...), got {type(rounds).__name__}")
        if not rounds.in_place:
            raise ArgumentError(
                "callback: expected slimfast.rounds(..., in_place=True): a trainer holds on to its modules"
            )
        self._steps = sorted(set(steps))
        if len(self._steps) != rounds.of or self._steps[0] < 1:
            raise ArgumentError(
                f"callback: expected a step of 1 or above for each of the {rounds.of} rounds, got "
                f"{self._steps}"
            )
        self._rounds, self._on_cut = rounds, on_cut

    def reached(self, step: int, optimizer: Any, processes: int) -> dict[str, float] | None:
        """Cut where a round is due after this step; what is to be logged of it, None where none is."""
        done = len(self._rounds.plans)
        if done == self._rounds.of or step < self._steps[done]:
            return None
        if processes > 1:
            raise SlimfastError(
                f"callback: expected a training in one process, got one in {processes}, which hold the "
                "network in wrappers of their own; cut between trainings"
            )
        self._rounds.optimizer = optimizer
        cut = next(self._rounds)
        if self._on_cut is not None:
            self._on_cut(cut)
        after, before = cut.plan.cost_after, cut.plan.cost_before
        told = {"round": cut.number, "params": after.params, "macs": after.macs}
        _log.info("step %d: %s to %s", step, before, after)
        return {f"slimfast/{name}": float(value) for name, value in told.items()}

    def ended(self, step: int) -> None:
        """Warn of rounds that a training ended before."""
        done = len(self._rounds.plans)
        if left := self._steps[done:]:
            warnings.warn(
                f"callback: the training ended at step {step}, before the rounds after {left}: {done} of "
                f"{self._rounds.of} rounds were cut, and the network is above its budget",
                UserWarning,
                stacklevel=2,
            )


def trainer_callback(
    rounds: Rounds, *, steps: Iterable[int], on_cut: Callable[[Any], None] | None = None
) -> Any:
    """Make a callback for the ``Trainer`` of Hugging Face that cuts its network after given steps.

    The network is cut in place, and its optimizer with it; the scheduler goes on. What is left is logged as
    ``slimfast/params`` and ``slimfast/macs``. A warning tells of rounds that the training ended before.

    Args:
        rounds: From :func:`slimfast.rounds` on the network of the trainer, with ``in_place=True``.
        steps: After which optimizer step each round cuts.
        on_cut: Called with each :class:`Round`.

    Returns:
        A ``transformers.TrainerCallback``.

    Raises:
        ValueError: For rounds that are not in place, and steps that are not as many as the rounds.
        SlimfastError: In a training of several processes.

    Example:
        run = slimfast.rounds(model, example, params=0.5, rounds=2, calibration=batches, in_place=True)
        trainer = Trainer(model, ..., callbacks=[slimfast.trainer_callback(run, steps=[100, 200])])
    """
    TrainerCallback: Any = _class_of("TrainerCallback", "transformers")
    cuts = _Cuts(rounds, steps, on_cut)

    class Callback(TrainerCallback):  # type: ignore[misc]
        """Cuts after steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            told = cuts.reached(state.global_step, held["optimizer"], args.world_size)
            if told is not None:
                state.log_history.append({**told, "step": state.global_step})

        def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            cuts.ended(state.global_step)

    return Callback()


def lightning_callback(
    rounds: Rounds, *, steps: Iterable[int], on_cut: Callable[[Any], None] | None = None
) -> Any:
    """Make a callback for the ``Trainer`` of Lightning that cuts a network of its module after given steps.

    The arguments are those of :func:`trainer_callback`; ``rounds`` are those of the network that the
    ``LightningModule`` holds, or of the module itself. What is left is logged likewise.

    Returns:
        A ``lightning.pytorch.Callback``, or that of ``pytorch_lightning`` where that is installed alone.

    Raises:
        ValueError: For rounds that are not in place, and steps that are not as many as the rounds.
        SlimfastError: In a training of several processes, or of several optimizers.

    Example:
        run = slimfast.rounds(module.network, example, macs=0.5, rounds=2, in_place=True)
        trainer = lightning.Trainer(callbacks=[slimfast.lightning_callback(run, steps=[100, 200])])
    """
    Base: Any = _class_of("Callback", "lightning.pytorch", "pytorch_lightning")
    cuts = _Cuts(rounds, steps, on_cut)

    class Callback(Base):  # type: ignore[misc]
        """Cuts after steps."""

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise SlimfastError(
                    f"callback: expected a training of one optimizer, got {len(trainer.optimizers)}"
                )
            told = cuts.reached(trainer.global_step, trainer.optimizers[0], trainer.world_size)
            if told is not None:
                module.log_dict(told)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            cuts.ended(trainer.global_step)

    return Callback()


def _class_of(name: str, *modules: str) -> Any:
    """Find a class in the first of these modules that is installed."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            if (
                not isinstance(error, ModuleNotFoundError)
                or not error.name
                or not module.startswith(error.name)
            ):
                raise SlimfastError(f"callback: {module} cannot be imported: {one_line(error)}") from error
    package = modules[0].partition(".")[0]
    raise SlimfastError(f"callback: {package} is not installed (pip install {package})")
