"""Training a student against its teacher: one call, on one process or many, resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from slimfast.distillation.adapters import adapted, described
from slimfast.distillation.batches import Feed, evaluating
from slimfast.distillation.checkpointing import checkpointed
from slimfast.distillation.hints import FeatureTap
from slimfast.distillation.lending import accelerated, lent
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.progress import TrainingBar
from slimfast.distillation.recipe import EpochRecord, History, Recipe
from slimfast.distillation.resume import postponed_interrupt, rng_state, save_training, set_rng_state
from slimfast.distillation.saved_run import go_on, saved_run, state_of
from slimfast.distillation.sharding import check_strategy
from slimfast.distillation.texts import check_of
from slimfast.distillation.training_run import Training
from slimfast.distillation.training_setup import Evaluate, Loss, Setup
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph.recording.module_copies import named_tensors
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
    gradient_checkpointing: bool = False,
    adapter: Any = None,
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
            the targets. Inputs are a tensor, a tuple of arguments or a dict of keywords; targets a tensor, or
            for several outputs a tuple or a dict of them. An iterator needs ``steps_per_epoch``.
        evaluate: batches to take the score on after each epoch, or a function of the student that gives one;
            higher is better. Of batches it is the accuracy; for outputs that are values minus the mean
            squared error, for those compared by "cosine" the mean cosine, and the mean over the outputs that
            have targets.
        loss: a :class:`DistillationLoss`, or a function of (student output, teacher output, targets or None).
        optimizer: "sgd" (Nesterov momentum) or "adamw". Weight decay spares biases and norm scales.
        warmup: share of all steps with a rising learning rate; afterwards it follows a cosine to zero.
        max_grad_norm: longer gradients are scaled down to this norm; None leaves them.
        ema: decay of an exponential moving average of the weights, as 0.999; scores, the best epoch and what
            the student ends with are then the average's.
        mixed_precision: None takes accelerate's own setting, which is "no" unless it was configured.
        steps_per_epoch: for a ``train`` without length, or for shorter epochs.
        gradient_checkpointing: keep no activations inside the student's blocks, and compute them again for
            the backward pass: a third more time for a fraction of the memory. For networks that do it
            themselves, as those of transformers (``gradient_checkpointing_enable``).
        adapter: a ``peft.LoraConfig``: low-rank adapters are trained in place of the weights they stand
            beside, and merged into them at the end. The student is then the network it was, of other
            weights. Needs the extra ``slimfast[lora]``.
        checkpoint: folder to save the training to after every epoch and on Ctrl-C. With ``resume=True`` a run
            that was stopped goes on from there; on one CPU process it ends with the bits of an unstopped one.
        progress: a bar on stderr; None: where that is a terminal. A function is called with the number of
            steps done and of all instead; where it raises :class:`slimfast.Cancelled`, the training is saved
            to ``checkpoint`` if there is one, and that is raised (on other processes KeyboardInterrupt).
        callback: called with each finished epoch, after it is saved, on the main process.
        accelerator: your own ``accelerate.Accelerator``, for what this call does not offer. Of its
            ``gradient_accumulation_steps`` batches each step of the optimizer is the mean; the last step of
            an epoch is that of those left.

    Returns:
        The history: its epochs, those before a resume included, and the one with the highest score, if any.

    Raises:
        SlimfastError: no data, networks or outputs that do not fit, a loss that is not finite, a folder that
            cannot be written or holds another run. One line, before the first step where it is known by then.

    Example:
        thin = slimfast.slim(model, example, params=0.5)
        history = distill(thin, teacher=model, train=loader, evaluate=held_out, epochs=20)
        print(history.best)
    """
    _check_networks(student, teacher)
    if restore not in ("best", "last"):
        raise ArgumentError(f"distill: restore must be 'best' or 'last', got {restore!r}")
    folder = None if checkpoint is None else output_folder(checkpoint)
    criterion: Loss = DistillationLoss() if loss is None else loss
    with ExitStack() as stack:
        stack.callback(set_rng_state, rng_state())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        accelerator = stack.enter_context(accelerated(accelerator, mixed_precision))
        merge = stack.enter_context(adapted(student, adapter))
        stack.enter_context(checkpointed(student, gradient_checkpointing))
        check = check_of(student, getattr(teacher, "teacher", teacher))
        feed = Feed(train, accelerator, name="train", steps=steps_per_epoch, check=check)
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
            adapter=described(adapter),
            accumulation=steps if (steps := accelerator.gradient_accumulation_steps) > 1 else None,
        )
        setup = Setup(student, teacher, criterion, recipe, accelerator, feed, evaluate)
        run = _started(setup, folder, stack, resume=resume)
        _run_epochs(run, folder, progress, callback)
        run.give_weights(restore)
        merge()
        return run.history()


def _check_networks(student: nn.Module, teacher: nn.Module) -> None:
    for name, network in (("student", student), ("teacher", teacher)):
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ArgumentTypeError(f"distill: expected the {name} to be a module, got {kind}")
        if empty := [of for of, tensor in named_tensors(network).items() if tensor.is_meta]:
            raise SlimfastError(
                f"distill: the {name}'s {empty[0]} is on the meta device and has no data; load its weights"
            )
    if student is teacher:
        raise ArgumentError("distill: the student is the teacher; pass two networks")
    _check_apart(student, teacher)
    if made := [name for name, tensor in student.state_dict().items() if tensor.is_inference()]:
        raise SlimfastError(
            f"distill: the student's {made[0]} was made in inference mode, which cannot be trained; train a "
            "copy.deepcopy of it that is made outside"
        )


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student whose training would change the teacher: by a weight or a statistic of both."""
    theirs = {_memory_of(tensor): name for name, tensor in named_tensors(teacher).items()}
    for name, tensor in named_tensors(student).items():
        changed = tensor.requires_grad or name.rpartition(".")[2].startswith("running_")
        if changed and tensor.numel() and (other := theirs.get(_memory_of(tensor))) is not None:
            raise ArgumentError(
                f"distill: the student's {name} is the teacher's {other}, which the training would change; "
                "give a copy.deepcopy of one of them, or take its requires_grad off"
            )


def _memory_of(tensor: torch.Tensor) -> Any:
    """Say where a tensor's values are; of those in no plain memory, which tensor it is."""
    try:
        return tensor.data_ptr() or id(tensor)
    except RuntimeError:
        return id(tensor)


def _started(setup: Setup, folder: Path | None, stack: ExitStack, *, resume: bool) -> Training:
    """Set up a training from its beginning, or from where ``folder`` has it; ``stack`` takes it down."""
    saved = None if folder is None else saved_run(folder, setup.recipe, resume=resume)
    check_strategy(setup.student, setup.accelerator)
    stack.enter_context(lent(setup.student, setup.accelerator.device))
    stack.enter_context(lent(setup.teacher, setup.accelerator.device))
    stack.enter_context(evaluating(setup.teacher))
    run = Training(setup)
    if saved is not None:
        go_on(run, saved, folder)
    return run


def _run_epochs(
    run: Training,
    folder: Path | None,
    progress: bool | Callable[[int, int], None] | None,
    callback: Callable[[EpochRecord], None] | None,
) -> None:
    """Train to the last epoch, or until Ctrl-C or a cancelling ``progress``, which are then raised."""
    recipe, main = run.setup.recipe, run.setup.accelerator.is_main_process
    with ExitStack() as stack:
        bar = stack.enter_context(TrainingBar(recipe, done=run.steps_done, shown=progress, main=main))
        features = stack.enter_context(run.watching())
        interrupted: Callable[[], bool] = bool
        if folder is not None:
            interrupted = stack.enter_context(postponed_interrupt(announce=bar.announce_stop))

        def stopping() -> bool:
            return interrupted() or bar.cancelled is not None

        name, first = type(run.setup.student).__name__, run.position.epoch + 1
        _log.info("distilling %s: epochs %d to %d", name, first, recipe.epochs)
        while not run.finished:
            _run_epoch(run, folder, features, stopping, bar, callback)
            if run.agreed(stopping()):
                raise bar.cancelled or KeyboardInterrupt


def _run_epoch(
    run: Training,
    folder: Path | None,
    features: FeatureTap,
    stopping: Callable[[], bool],
    bar: TrainingBar,
    callback: Callable[[EpochRecord], None] | None,
) -> None:
    """Train for an epoch or until a stop, save what is done, and tell of it."""
    finished = run.train_epoch(features, stopping, bar)
    record = run.close_epoch() if finished else None
    state = None if folder is None else state_of(run)
    if not run.setup.accelerator.is_main_process:
        return
    if folder is not None and state is not None:
        save_training(folder, state)
    if record is not None:
        _log.info("epoch %d: loss %.4g, score %s", record.epoch, record.loss, record.score)
        bar.show_record(record)
        if callback is not None:
            callback(record)
