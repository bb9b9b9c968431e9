"""Training a student against its teacher: one call, on one process or many, resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from slimfast.distillation.batches import Feed, device_of, evaluating, keeping_modes
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.progress import TrainingBar
from slimfast.distillation.recipe import EpochRecord, History, Recipe
from slimfast.distillation.resume import (
    load_training,
    postponed_interrupt,
    rng_state,
    save_training,
    set_rng_state,
)
from slimfast.distillation.sharding import check_strategy, is_sharded
from slimfast.distillation.training_run import Evaluate, Loss, Training
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.storage.atomic import output_folder

_log = logging.getLogger(__name__)


def distill(
    student: nn.Module,
    *,
    teacher: nn.Module,
    train: Iterable[Any],
    evaluate: Evaluate | None = None,
    epochs: int = 10,
    lr: float = 0.05,
    loss: Loss | None = None,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.05,
    max_grad_norm: float | None = 5.0,
    ema: float | None = None,
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None,
    steps_per_epoch: int | None = None,
    restore: Literal["best", "last"] = "best",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Callable[[int, int], None] | None = None,
    callback: Callable[[EpochRecord], None] | None = None,
    accelerator: Any = None,
) -> History:
    """Train ``student`` in place towards ``teacher``, and return what happened.

    Runs on Hugging Face accelerate: the same call started by ``accelerate launch`` or ``torchrun`` uses all
    its processes and GPUs, under DDP, or under FSDP 2 where accelerate is configured so or ``fully_shard``
    was called on the student. The student comes back on its device (sharded under FSDP: see
    :func:`slimfast.save`) and in its train/eval mode of before, with the weights of its best epoch
    (``restore="last"``: of its last one). The teacher runs in eval mode without gradients and is left as it
    was; so are the random generators of Python, NumPy and torch.

    Args:
        train: a DataLoader or list of batches: (inputs, targets), inputs alone, or dicts whose ``labels`` are
            the targets. Inputs are a tensor, a tuple of arguments or a dict of keywords.
        evaluate: batches to take the accuracy on after each epoch, or a function of the student that gives a
            score; higher is better.
        loss: a :class:`DistillationLoss`, or a function of (student output, teacher output, targets or None).
        optimizer: "sgd" (Nesterov momentum) or "adamw". Weight decay spares biases and norm scales.
        warmup: share of all steps with a rising learning rate; afterwards it follows a cosine to zero.
        max_grad_norm: longer gradients are scaled down to this norm; None leaves them.
        ema: decay of an exponential moving average of the weights, as 0.999; scores, the best epoch and what
            the student ends with are then the average's.
        mixed_precision: None takes accelerate's own setting, which is "no" unless it was configured.
        steps_per_epoch: for a ``train`` without length, or for shorter epochs.
        checkpoint: folder to save the training to after every epoch and on Ctrl-C. With ``resume=True`` a run
            that was stopped goes on from there; on one CPU process it ends with the bits of an unstopped one.
        progress: a bar on stderr; None: where that is a terminal. A function is called with the number of
            steps done and of all instead; where it raises :class:`slimfast.Cancelled`, the training is saved
            to ``checkpoint`` if there is one, and that is raised (on other processes KeyboardInterrupt).
        callback: called with each finished epoch, after it is saved, on the main process.
        accelerator: your own ``accelerate.Accelerator``, for what this call does not offer.

    Raises:
        SlimfastError: no data, networks or outputs that do not fit, a loss that is not finite, a folder that
            cannot be written or holds another run. One line, before the first step where it is known by then.
    """
    if student is teacher:
        raise ArgumentError("distill: the student is the teacher; pass two networks")
    if restore not in ("best", "last"):
        raise ArgumentError(f"distill: restore must be 'best' or 'last', got {restore!r}")
    folder = None if checkpoint is None else output_folder(checkpoint)
    criterion: Loss = DistillationLoss() if loss is None else loss
    with ExitStack() as stack:
        stack.callback(set_rng_state, rng_state())
        accelerator = stack.enter_context(_accelerate(accelerator, mixed_precision))
        feed = Feed(train, accelerator, name="train")
        recipe = Recipe(
            epochs=epochs,
            steps_per_epoch=len(feed) if steps_per_epoch is None else steps_per_epoch,
            lr=lr,
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup=warmup,
            max_grad_norm=max_grad_norm,
            mixed_precision=accelerator.mixed_precision,
            seed=seed,
            processes=accelerator.num_processes,
            loss=str(criterion) if isinstance(criterion, DistillationLoss) else "custom",
            ema=ema,
        )
        saved = None if folder is None else _saved_run(folder, recipe, resume=resume)
        check_strategy(student, accelerator)
        stack.enter_context(_lent(student, accelerator.device))
        stack.enter_context(_lent(teacher, accelerator.device))
        stack.enter_context(evaluating(teacher))
        run = Training(student, teacher, criterion, recipe, accelerator, feed, evaluate)
        if saved is not None:
            _go_on(run, saved, folder)
        bar = stack.enter_context(
            TrainingBar(recipe, done=run.steps_done, shown=progress, main=accelerator.is_main_process)
        )
        features = stack.enter_context(run.watching())
        interrupted: Callable[[], bool] = bool
        if folder is not None:
            interrupted = stack.enter_context(postponed_interrupt(announce=bar.announce_stop))

        def stopping() -> bool:
            return interrupted() or bar.cancelled is not None

        _log.info("distilling %s: epochs %d to %d", type(student).__name__, run.epoch + 1, recipe.epochs)
        while run.epoch < recipe.epochs:
            finished = run.train_epoch(features, stopping, bar)
            record = run.close_epoch() if finished else None
            state = None if folder is None else run.state()
            if accelerator.is_main_process:
                if folder is not None and state is not None:
                    save_training(folder, state)
                if record is not None:
                    _log.info("epoch %d: loss %.4g, score %s", record.epoch, record.loss, record.score)
                    bar.show_record(record)
                    if callback is not None:
                        callback(record)
            if run.agreed(stopping()):
                raise bar.cancelled or KeyboardInterrupt
        if restore == "best" and run.best is not None:
            student.load_state_dict(run.best["student"])
        elif run.average is not None:
            run.average.put()
        return run.history()


def _saved_run(folder: Path, recipe: Recipe, *, resume: bool) -> dict[str, Any] | None:
    """The training in ``folder`` to go on with, if any; an error where it is not this one."""
    saved = load_training(folder)
    if saved is None:
        return None
    if not resume:
        raise SlimfastError(
            f"{folder} holds a training ({saved['epoch']} epochs done): resume it or use another folder"
        )
    if differences := recipe.differences(saved["recipe"]):
        raise SlimfastError(f"{folder} holds a training with other settings: {differences}")
    return saved


def _go_on(run: Training, saved: dict[str, Any], folder: Path | None) -> None:
    """Take over a training from its file, which may be of another version or a stranger's."""
    try:
        run.load(saved)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SlimfastError(f"{folder}: the training in it does not fit this one: {reason}") from error


@contextmanager
def _accelerate(given: Any, precision: str | None) -> Iterator[Any]:
    """The user's Accelerator, or one of our own that leaves nothing behind."""
    if given is not None:
        if precision not in (None, given.mixed_precision):
            theirs = given.mixed_precision
            raise ArgumentError(f"distill: mixed_precision={precision!r}, but the accelerator has {theirs!r}")
        yield given
        return
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise SlimfastError("distill needs accelerate: pip install 'slimfast[distill]'") from error
    # accelerate keeps the first precision for the whole process; the next call may want another.
    first = not AcceleratorState._shared_state
    accelerator = None
    try:
        accelerator = Accelerator(mixed_precision=precision)
        yield accelerator
    finally:
        if accelerator is not None:
            accelerator.free_memory()
        if first:
            AcceleratorState._reset_state()


@contextmanager
def _lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """``model`` on ``device`` inside the block; after it on its own device, in its modes, unmarked.

    One that is sharded, or becomes so, stays where it is.
    """
    before, attributes = device_of(model), set(vars(model))
    spread = len({parameter.device for parameter in model.parameters()}) > 1
    with keeping_modes(model):
        try:
            if not spread and not is_sharded(model):
                model.to(device)
            yield
        finally:
            # accelerate leaves a wrapped forward and a mark behind.
            for name in set(vars(model)) - attributes:
                del vars(model)[name]
            if not spread and not is_sharded(model):
                model.to(before)
