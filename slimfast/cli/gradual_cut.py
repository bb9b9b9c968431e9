"""The part of ``slim`` that cuts in rounds, with a distillation after each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slimfast.checkpoints.thin_files import load
from slimfast.cli import console
from slimfast.cli.data import Data
from slimfast.cli.option_groups import Cut, Gradual
from slimfast.cli.training import Lesson, show_score, train
from slimfast.cli.training_options import Training
from slimfast.distillation.resume import FILE
from slimfast.errors import SlimfastError
from slimfast.gradual import rounds
from slimfast.plans.request import WidthOptions


def data_of_rounds(data: Data | None, cut: Cut, training: Training) -> Data:
    """Return the data to train on after each round; refuse options that rounds decide by themselves."""
    if data is None:
        raise SlimfastError("--rounds: expected --data to train on after each round, got none")
    if isinstance(data.train, Iterator):
        raise SlimfastError("--rounds: expected training batches that can be iterated again, got an iterator")
    usual = Cut()
    given = {
        name.replace("_", "-"): getattr(cut, name) != getattr(usual, name)
        for name in ("select", "repair", "repair_damping", "calibration")
    }
    console.refuse("--rounds: every round measures --data and chooses as --for-training does", given)
    console.refuse("--rounds: the same command goes on by itself", {"resume": training.resume})
    return data


def slim_in_rounds(
    lesson: Lesson,
    example: Any,
    gradual: Gradual,
    wanted: WidthOptions,
    traced: Mapping[str, Any],
    training: Training,
    folder: Path,
    *,
    seed: int,
    verify: bool,
    backend: str,
) -> nn.Module:
    """Cut the teacher in rounds, distil it into what is left after each, and return the last network.

    It is in ``distilled.safetensors``; what a run needs to go on is in the folder ``rounds`` beside.
    """
    teacher, data = lesson.teacher, lesson.data
    show_score("the original", teacher, data)
    with console.progress("cutting") as advance:
        run = rounds(
            teacher,
            example,
            rounds=gradual.rounds,
            schedule=gradual.schedule.value,
            calibration=data.train,
            folder=folder / "rounds",
            verify=verify,
            backend=backend,
            progress=advance,
            **traced,
            **wanted,
        )
        for step in run:
            last = step.number == step.of
            target = folder / (
                "distilled.safetensors" if last else f"rounds/distilled-{step.number}.safetensors"
            )
            console.tell(f"round {step.number} of {step.of}: {step.plan.cost_after.macs:,} MACs left")
            if target.exists():
                # It was trained, and then the run was stopped.
                step.model = load(target, teacher)
                continue
            show_score("before its training", step.model, data)
            begun = target.with_name(f"{target.name}.training")
            here = replace(training, resume=begun) if (begun / FILE).exists() else training
            train(replace(lesson, student=step.model), target, here, seed)
            console.tell_written(target)
    return run.model
