"""A training as plain values and tensors, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from slimfast.distillation.recipe import EpochRecord, Recipe
from slimfast.distillation.resume import load_training
from slimfast.distillation.training_run import Training
from slimfast.distributed.dtensors import gathered, part_like
from slimfast.errors import SlimfastError
from slimfast.plans.fingerprint import fingerprint


def saved_run(folder: Path, recipe: Recipe, *, resume: bool) -> dict[str, Any] | None:
    """Read the training in ``folder`` to go on with, if any; an error where it is not this one."""
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


def state_of(run: Training) -> dict[str, Any]:
    """Collect all that :func:`go_on` needs to go on from here.

    Every process calls it: what is sharded is gathered, and complete on the main one.
    """
    accelerator, position = run.setup.accelerator, run.position
    state = {
        "recipe": asdict(run.setup.recipe),
        "epoch": position.epoch,
        "step": position.step,
        "losses": position.losses,
        "teacher": _teacher_of(run),
        "records": [asdict(record) for record in run.records],
        "student": run.setup.student.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "rng": position.rng,
        "average": None if run.average is None else (run.average.tensors, run.average.updates),
        "best": run.best,
    }
    whole: dict[str, Any] = gathered(state, keep=accelerator.is_main_process)
    return whole


def go_on(run: Training, saved: dict[str, Any], folder: Path | None) -> None:
    """Take over a training from its file, which may be of another version or a stranger's."""
    try:
        _load(run, saved)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SlimfastError(f"{folder}: the training in it does not fit this one: {reason}") from error


def _load(run: Training, saved: dict[str, Any]) -> None:
    """Take over what :func:`state_of` gave in an earlier process."""
    student, scaler, position = run.setup.student, run.setup.accelerator.scaler, run.position
    own = student.state_dict()
    ours = {name: tuple(tensor.shape) for name, tensor in own.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in saved["student"].items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            found, wanted = theirs.get(name, "not there"), ours.get(name, "not there")
            raise SlimfastError(f"the checkpoint is of another student: {name} {found}, here {wanted}")
    teacher, now = saved.get("teacher"), _teacher_of(run)
    if teacher is not None and now is not None and teacher != now:
        raise SlimfastError(
            f"the training was towards a teacher of other weights (fingerprint {teacher[:8]}, here {now[:8]})"
        )
    student.load_state_dict(_parts_like(saved["student"], own))
    run.optimizer.load_state_dict(_optimizer_parts(run.optimizer, saved["optimizer"]))
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    position.epoch, position.step, position.rng = (saved[name] for name in ("epoch", "step", "rng"))
    position.losses.copy_(saved["losses"])
    if (best := saved["best"]) is not None:
        best = {**best, "student": _parts_like(best["student"], own)}
    run.best = best
    if run.average is not None:
        tensors, updates = saved["average"]
        run.average.load(_parts_like(tensors, own), updates)
    run.records = [EpochRecord(**record) for record in saved["records"]]


def _teacher_of(run: Training) -> str | None:
    """Take the fingerprint of the teacher, be it kept in a file or not."""
    teacher = run.setup.teacher
    return fingerprint(getattr(teacher, "teacher", teacher))


def _optimizer_parts(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """Take this process's parts of an optimizer's saved state, where they belong to sharded parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {
            name: part_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in entries.items()
        }
        for index, entries in saved["state"].items()
    }
    return {**saved, "state": state}


def _parts_like(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part_like(tensor, like[name]) for name, tensor in tensors.items()}
