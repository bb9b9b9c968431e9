"""A training under way: its steps, epochs, scores, and the state it is resumed from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.distillation.averaging import MovingAverage
from slimfast.distillation.batches import Feed, call, describe, evaluating, split_batch
from slimfast.distillation.hints import FeatureTap
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.network_outputs import logits_of
from slimfast.distillation.progress import TrainingBar
from slimfast.distillation.recipe import EpochRecord, History, Recipe
from slimfast.distillation.resume import rng_state, set_rng_state
from slimfast.distillation.scores import count_right
from slimfast.distillation.sharding import check_sharded, is_sharded
from slimfast.distributed.dtensors import gathered, is_part, part_like
from slimfast.errors import ArgumentTypeError, SlimfastError

Loss: TypeAlias = "DistillationLoss | Callable[[Any, Any, Tensor | None], Tensor]"
Evaluate: TypeAlias = "Iterable[Any] | Callable[[nn.Module], float]"

# Looking at the losses waits for the accelerator, and asks all processes: done once for so many steps.
_STEPS_PER_LOOK = 16


class Training:
    """A training under way: the two networks, how far it is, and what has come of it.

    ``epoch`` epochs are finished, and ``step`` steps of the one after; ``losses`` holds the losses of these.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        loss: Loss,
        recipe: Recipe,
        accelerator: Any,
        feed: Feed,
        evaluate: Evaluate | None,
    ) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss
        self.recipe, self.accelerator, self.feed, self.evaluate = recipe, accelerator, feed, evaluate
        self.class_dim = loss.class_dim if isinstance(loss, DistillationLoss) else -1
        self.model, self.optimizer = _prepared(student, recipe, accelerator)
        self.epoch = self.step = 0
        self.losses = torch.zeros(recipe.steps_per_epoch, device=accelerator.device)
        self.records: list[EpochRecord] = []
        self.best: dict[str, Any] | None = None
        self.average = None if recipe.ema is None else MovingAverage(student, recipe.ema)
        self._rng: dict[str, Any] | None = None
        self._looked = False
        self._since = time.perf_counter()
        if evaluate is not None and not callable(evaluate):
            if isinstance(evaluate, Iterator):
                raise ArgumentTypeError(
                    "evaluate is an iterator, which is empty after one epoch: pass a list"
                )
            # One batch now rather than an error after the first epoch.
            if not count_right(student, islice(evaluate, 1), class_dim=self.class_dim)[1]:
                raise SlimfastError("evaluate has no targets")

    @property
    def steps_done(self) -> int:
        """Steps since the first one of the first epoch."""
        return self.epoch * self.recipe.steps_per_epoch + self.step

    def watching(self) -> AbstractContextManager[FeatureTap]:
        """What records the features that the loss compares."""
        if isinstance(self.loss, DistillationLoss):
            return self.loss.watching(self.student, self.teacher)
        return nullcontext(FeatureTap(()))

    def agreed(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process."""
        if self.recipe.processes == 1:
            return flag
        votes = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(votes > 0)

    def train_epoch(self, features: FeatureTap, stopping: Callable[[], bool], bar: TrainingBar) -> bool:
        """Train to the end of the epoch; False when the processes agreed to stop before it."""
        steps = self.recipe.steps_per_epoch
        batches = self.feed.epoch(self.epoch, seed=self.recipe.seed)
        for _ in islice(batches, self.step):
            pass
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None
        self.model.train()
        alone = self.accelerator.device.type == "cpu" and self.recipe.processes == 1
        while self.step < steps:
            batch = next(batches, None)
            if batch is None:
                raise SlimfastError(f"train: {self.step} batches in epoch {self.epoch + 1}, expected {steps}")
            self._train_step(batch, features)
            if alone or self.step % _STEPS_PER_LOOK == 0 or self.step == steps:
                self._check_losses()
                bar.show(self.steps_done, float(self.losses[: self.step].mean()))
                if self.agreed(stopping()) and self.step < steps:
                    self._rng = rng_state()
                    return False
        return True

    def close_epoch(self) -> EpochRecord:
        """Evaluate, record the epoch, and turn to the next one."""
        if self.recipe.processes > 1:
            # Each process has its own batch-norm statistics since the last step; the first one's are saved.
            for buffer in self.student.buffers():
                torch.distributed.broadcast(buffer, 0)
        loss = float(self.accelerator.reduce(self.losses.mean(), "mean"))
        rate = self.recipe.rate(self.steps_done - 1)
        with nullcontext() if self.average is None else self.average.used():
            score = self._score()
            best = self._best(score)
        now = time.perf_counter()
        record = EpochRecord(self.epoch + 1, loss, rate, score, now - self._since)
        self.best = best
        self.records.append(record)
        self.epoch, self.step, self._since = self.epoch + 1, 0, now
        self.losses.zero_()
        return record

    def _best(self, score: float | None) -> dict[str, Any] | None:
        """The best epoch so far, the one that just got this score included, with the weights as they are."""
        if score is None or (self.best is not None and not score > self.best["score"]):
            return self.best
        # A part stays on its device: its process's share of the copy is small.
        weights = {
            name: tensor.detach().clone() if is_part(tensor) else tensor.detach().cpu().clone()
            for name, tensor in self.student.state_dict().items()
        }
        return {"epoch": self.epoch + 1, "score": score, "student": weights}

    def history(self) -> History:
        """The finished epochs."""
        best = None if self.best is None else self.records[self.best["epoch"] - 1]
        return History(tuple(self.records), best)

    def state(self) -> dict[str, Any]:
        """All that :meth:`load` needs to go on from here.

        Every process calls it: what is sharded is gathered, and complete on the main one.
        """
        scaler = self.accelerator.scaler
        state = {
            "recipe": asdict(self.recipe),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "records": [asdict(record) for record in self.records],
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": self._rng,
            "average": None if self.average is None else (self.average.tensors, self.average.updates),
            "best": self.best,
        }
        whole: dict[str, Any] = gathered(state, keep=self.accelerator.is_main_process)
        return whole

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave in an earlier process."""
        own = self.student.state_dict()
        ours = {name: tuple(tensor.shape) for name, tensor in own.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in saved["student"].items()}
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                found, wanted = theirs.get(name, "not there"), ours.get(name, "not there")
                raise SlimfastError(f"the checkpoint is of another student: {name} {found}, here {wanted}")
        self.student.load_state_dict(_parts_like(saved["student"], own))
        self.optimizer.load_state_dict(self._optimizer_parts(saved["optimizer"]))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.step, self.best, self._rng = (
            saved[name] for name in ("epoch", "step", "best", "rng")
        )
        if self.best is not None:
            self.best = {**self.best, "student": _parts_like(self.best["student"], own)}
        if self.average is not None:
            tensors, updates = saved["average"]
            self.average.load(_parts_like(tensors, own), updates)
        self.losses.copy_(saved["losses"])
        self.records = [EpochRecord(**record) for record in saved["records"]]

    def _optimizer_parts(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved state of the optimizer with this process's parts of what belongs to sharded parameters."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            index: {
                name: part_like(value, parameters[index]) if isinstance(value, Tensor) else value
                for name, value in entries.items()
            }
            for index, entries in saved["state"].items()
        }
        return {**saved, "state": state}

    def _train_step(self, batch: Any, features: FeatureTap) -> None:
        inputs, targets = split_batch(batch)
        if not self._looked:
            self._look(inputs, targets, features)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.steps_done)
        loss = self._loss_of(self.model, inputs, targets, features)
        self.accelerator.backward(loss)
        if self.recipe.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        self.losses[self.step] = loss.detach()
        self.step += 1

    def _loss_of(self, model: nn.Module, inputs: Any, targets: Tensor | None, features: FeatureTap) -> Tensor:
        with self.accelerator.autocast():
            with torch.no_grad():
                expected = call(self.teacher, inputs)
            output = call(model, inputs)
        if isinstance(self.loss, DistillationLoss):
            return self.loss(output, expected, targets, features())
        return self.loss(output, expected, targets)

    def _look(self, inputs: Any, targets: Tensor | None, features: FeatureTap) -> None:
        """Both networks and the loss on the first batch: what does not fit is said before the first step."""
        before = rng_state()
        with evaluating(self.student), torch.no_grad():
            outputs = []
            for name, model in (("teacher", self.teacher), ("student", self.student)):
                try:
                    outputs.append(call(model, inputs))
                except Exception as error:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    raise SlimfastError(f"the {name} fails on inputs {describe(inputs)}: {reason}") from error
            if isinstance(self.loss, DistillationLoss):
                _check_outputs(outputs[0], outputs[1], targets, self.loss)
            self._loss_of(self.student, inputs, targets, features)
        set_rng_state(before)
        self._looked = True

    def _check_losses(self) -> None:
        wrong = ~torch.isfinite(self.losses[: self.step])
        if not self.agreed(bool(wrong.any())):
            return
        step = int(wrong.nonzero()[0]) if wrong.any() else self.step - 1
        rate = self.recipe.rate(self.epoch * self.recipe.steps_per_epoch + step)
        raise SlimfastError(
            f"distill: the loss is {float(self.losses[step])} at epoch {self.epoch + 1}, step {step + 1} of "
            f"{self.recipe.steps_per_epoch} (learning rate {rate:.3g})"
        )

    def _score(self) -> float | None:
        evaluate = self.evaluate
        if evaluate is None:
            return None
        device = self.accelerator.device
        if callable(evaluate):
            with evaluating(self.student):
                score = torch.tensor(float(evaluate(self.student)), dtype=torch.float64)
            if self.recipe.processes > 1:
                score = score.to(device)
                torch.distributed.broadcast(score, 0)
            return float(score)
        counts = count_right(
            self.student,
            evaluate,
            class_dim=self.class_dim,
            turns=self.recipe.processes,
            turn=self.accelerator.process_index,
        )
        right, total = self.accelerator.reduce(
            torch.tensor(counts, dtype=torch.float64, device=device), "sum"
        )
        return float(right / total)


def _prepared(student: nn.Module, recipe: Recipe, accelerator: Any) -> tuple[Any, Any]:
    """The model to train and its optimizer as accelerate wraps them; a student that is sharded is not wrapped
    again.
    """
    if is_sharded(student):
        check_sharded(student, recipe.processes)
        model = accelerator.prepare_model(student, device_placement=False, evaluation_mode=True)
        return model, accelerator.prepare_optimizer(recipe.build_optimizer(student))
    model, optimizer = accelerator.prepare(student, recipe.build_optimizer(student))
    if is_sharded(student):
        check_sharded(student, recipe.processes)
    return model, optimizer


def _parts_like(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part_like(tensor, like[name]) for name, tensor in tensors.items()}


def _check_outputs(teacher: Any, student: Any, targets: Tensor | None, loss: DistillationLoss) -> None:
    """Raise :class:`SlimfastError` where ``loss`` cannot compare two networks' outputs on one batch."""
    expected, logits = logits_of(teacher), logits_of(student)
    if not torch.isfinite(expected).all():
        raise SlimfastError("distill: the teacher's output is not finite on the first batch")
    if loss.soft and logits.shape != expected.shape:
        got, wanted = tuple(logits.shape), tuple(expected.shape)
        raise SlimfastError(f"distill: the student's output is {got}, the teacher's {wanted}")
    if loss.hard and targets is not None and not targets.is_floating_point() and targets.numel():
        classes, highest = logits.shape[loss.class_dim], int(targets.max())
        if highest >= classes:
            raise SlimfastError(
                f"distill: target {highest} on the first batch, but the student has {classes} classes"
            )
