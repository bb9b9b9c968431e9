"""A training under way: steps, epochs, and what has come of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.distillation.averaging import MovingAverage
from slimfast.distillation.batches import call, describe, evaluating, mask_of, split_batch
from slimfast.distillation.evaluation import Evaluation
from slimfast.distillation.first_batch import settled_loss
from slimfast.distillation.hints import FeatureTap
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.progress import TrainingBar
from slimfast.distillation.recipe import EpochRecord, History
from slimfast.distillation.resume import rng_state, set_rng_state
from slimfast.distillation.training_setup import Loss, Setup
from slimfast.distributed.dtensors import is_part
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.recording.inputs import tensors_in

# Looking at the losses waits for the accelerator, and asks all processes: done once for so many steps.
_STEPS_PER_LOOK = 16


@dataclass(slots=True)
class Position:
    """How far a training is: ``epoch`` epochs are finished, and ``step`` steps of the one after.

    ``losses`` holds the losses of these steps, ``rng`` the generators where it stopped between two of them.
    """

    losses: Tensor
    epoch: int = 0
    step: int = 0
    rng: dict[str, Any] | None = None


class Training:
    """Run a training: what it is made of, how far it is, and what has come of it."""

    def __init__(self, setup: Setup) -> None:
        recipe, accelerator = setup.recipe, setup.accelerator
        self.setup = setup
        # None until a batch was seen.
        self._loss: Loss | None = None
        self.model, self.optimizer = setup.prepared()
        self.position = Position(torch.zeros(recipe.steps_per_epoch, device=accelerator.device))
        self.records: list[EpochRecord] = []
        self.best: dict[str, Any] | None = None
        self.average = None if recipe.ema is None else MovingAverage(setup.student, recipe.ema)
        self._since = time.perf_counter()
        self._evaluation = Evaluation(setup)

    @property
    def steps_done(self) -> int:
        """Steps since the first one of the first epoch."""
        return self.position.epoch * self.setup.recipe.steps_per_epoch + self.position.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self.setup.recipe.epochs

    def watching(self) -> AbstractContextManager[FeatureTap]:
        """Record the features that the loss compares."""
        if isinstance(self.setup.loss, DistillationLoss):
            return self.setup.loss.watching(self.setup.student, self.setup.teacher)
        return nullcontext(FeatureTap(()))

    def agreed(self, flag: bool) -> bool:
        """Tell whether ``flag`` is true on any process."""
        if self.setup.recipe.processes == 1:
            return flag
        accelerator = self.setup.accelerator
        votes = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
        return bool(votes > 0)

    def train_epoch(self, features: FeatureTap, stopping: Callable[[], bool], bar: TrainingBar) -> bool:
        """Train to the end of the epoch; False when the processes agreed to stop before it."""
        recipe, position = self.setup.recipe, self.position
        steps = recipe.steps_per_epoch
        batches = self.setup.feed.epoch(position.epoch, seed=recipe.seed)
        for _ in islice(batches, position.step):
            pass
        if position.rng is not None:
            set_rng_state(position.rng)
            position.rng = None
        self.model.train()
        alone = self.setup.accelerator.device.type == "cpu" and recipe.processes == 1
        while position.step < steps:
            batch = next(batches, None)
            if batch is None:
                epoch = position.epoch + 1
                raise SlimfastError(f"train: {position.step} batches in epoch {epoch}, expected {steps}")
            self._check_samples(batch)
            self._train_step(batch, features)
            between = position.step % (recipe.accumulation or 1) == 0
            if alone or position.step % _STEPS_PER_LOOK == 0 or position.step == steps:
                self._check_losses()
                bar.show(self.steps_done, float(position.losses[: position.step].mean()))
                # What was accumulated is not saved.
                if between and self.agreed(stopping()) and position.step < steps:
                    position.rng = rng_state()
                    return False
        return True

    def close_epoch(self) -> EpochRecord:
        """Evaluate, record the epoch, and turn to the next one."""
        setup, position = self.setup, self.position
        if setup.recipe.processes > 1:
            # Each process has its own batch-norm statistics since the last step; the first one's are saved.
            for buffer in setup.student.buffers():
                torch.distributed.broadcast(buffer, 0)
        loss = float(setup.accelerator.reduce(position.losses.mean(), "mean"))
        if loss == 0.0 and setup.accelerator.is_main_process:
            warnings.warn(
                f"distill: every loss of epoch {position.epoch + 1} was 0, so that nothing was taught: the "
                "student computes what the teacher does, or all targets and positions are left out",
                UserWarning,
                stacklevel=2,
            )
        rate = setup.recipe.rate(self.steps_done - 1)
        with nullcontext() if self.average is None else self.average.used():
            score = self._evaluation.score()
            best = self._best(score)
        now = time.perf_counter()
        record = EpochRecord(position.epoch + 1, loss, rate, score, now - self._since)
        self.best = best
        self.records.append(record)
        position.epoch, position.step, self._since = position.epoch + 1, 0, now
        position.losses.zero_()
        return record

    def give_weights(self, which: str) -> None:
        """Leave the student with the weights of its "best" epoch, or those it has "last"."""
        if which == "best" and self.best is not None:
            self.setup.student.load_state_dict(self.best["student"])
        elif self.average is not None:
            self.average.put()

    def history(self) -> History:
        """List the finished epochs."""
        best = None if self.best is None else self.records[self.best["epoch"] - 1]
        return History(tuple(self.records), best)

    def _best(self, score: float | None) -> dict[str, Any] | None:
        """Find the best epoch so far, the one with this score included, with the weights as they are."""
        if score is None or math.isnan(score):
            return self.best
        if self.best is not None and score <= self.best["score"]:
            return self.best
        # A part stays on its device: its process's share of the copy is small.
        weights = {
            name: tensor.detach().clone() if is_part(tensor) else tensor.detach().cpu().clone()
            for name, tensor in self.setup.student.state_dict().items()
        }
        return {"epoch": self.position.epoch + 1, "score": score, "student": weights}

    def _train_step(self, batch: Any, features: FeatureTap) -> None:
        recipe, accelerator, position = self.setup.recipe, self.setup.accelerator, self.position
        inputs, targets = split_batch(batch)
        if self._loss is None:
            self._look(inputs, targets, features)
        of, steps = recipe.accumulation or 1, recipe.steps_per_epoch
        if position.step % of == 0:
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate(self.steps_done)
        try:
            loss = self._loss_of(self.model, inputs, targets, features)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, AttributeError, AssertionError) as error:
            where = f"batch {position.step + 1} of epoch {position.epoch + 1}"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SlimfastError(f"distill: {where} fails on inputs {describe(inputs)}: {reason}") from error
        if not loss.requires_grad or loss.is_inference():
            raise SlimfastError(
                "distill: the loss has no gradient; does the student's forward run under torch.no_grad() or "
                "torch.inference_mode(), or detach what it returns?"
            )
        last = (position.step + 1) % of == 0 or position.step + 1 == steps
        with nullcontext() if last else accelerator.no_sync(self.model):
            # accelerate divides by ``of``, of which an epoch may have fewer left.
            accelerator.backward(loss * (of / min(of, steps - position.step // of * of)))
        if last:
            self._update()
        position.losses[position.step] = loss.detach()
        position.step += 1

    def _update(self) -> None:
        """Take the step of the optimizer that the gradients say."""
        recipe = self.setup.recipe
        if recipe.max_grad_norm is not None:
            self.setup.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()

    def _loss_of(self, model: nn.Module, inputs: Any, targets: Any, features: FeatureTap) -> Tensor:
        assert self._loss is not None
        with self.setup.accelerator.autocast():
            with torch.no_grad():
                expected = call(self.setup.teacher, inputs)
            output = call(model, inputs)
        if isinstance(self._loss, DistillationLoss):
            return self._loss(output, expected, targets, features(), mask=mask_of(inputs))
        loss = self._loss(output, expected, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentTypeError(
                f"distill: expected a loss that returns a tensor of one number, got {found}"
            )
        return loss.reshape(())

    def _look(self, inputs: Any, targets: Any, features: FeatureTap) -> None:
        """Try both networks and the loss on the first batch, and leave everything as it was before."""
        before = rng_state()
        self._loss = settled_loss(self.setup, inputs, targets)
        with evaluating(self.setup.student), torch.no_grad():
            self._loss_of(self.setup.student, inputs, targets, features)
        set_rng_state(before)

    def _check_samples(self, batch: Any) -> None:
        """Refuse a batch without samples, whose mean loss is not a number."""
        if any(tensor.dim() and not len(tensor) for tensor in tensors_in(split_batch(batch)[0])):
            position = self.position
            raise SlimfastError(
                f"train: batch {position.step + 1} of epoch {position.epoch + 1} has no samples"
            )

    def _check_losses(self) -> None:
        recipe, position = self.setup.recipe, self.position
        wrong = ~torch.isfinite(position.losses[: position.step])
        if not self.agreed(bool(wrong.any())):
            return
        step = int(wrong.nonzero()[0]) if wrong.any() else position.step - 1
        rate = recipe.rate(position.epoch * recipe.steps_per_epoch + step)
        raise SlimfastError(
            f"distill: the loss is {float(position.losses[step])} at epoch {position.epoch + 1}, step "
            f"{step + 1} of {recipe.steps_per_epoch} (learning rate {rate:.3g})"
        )
