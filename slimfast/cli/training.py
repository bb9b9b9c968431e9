"""The command that trains a thin network: ``distill``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from slimfast.checkpoints.thin_files import load, save
from slimfast.checkpoints.thin_shards import load_checkpoint
from slimfast.cli import console, options
from slimfast.cli.data import Data
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build, build_model
from slimfast.cli.option_groups import Batches, takes_groups
from slimfast.cli.stored import in_dtypes, in_float32
from slimfast.cli.training_options import Training
from slimfast.distillation import EpochRecord, History
from slimfast.distillation import distill as train_student
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.resume import FILE
from slimfast.distillation.scores import mean_score, tally
from slimfast.errors import SlimfastError
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.reports.plots import history_table


@dataclass(frozen=True, slots=True)
class Lesson:
    """Who learns what from whom, where, and the dtypes that the student is to be saved in."""

    student: nn.Module
    teacher: nn.Module
    data: Data
    device: str = "cpu"
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)


@takes_groups
def distill(
    model: options.Model,
    thin: Annotated[Path, typer.Argument(help="The thin network, as 'slimfast prune' writes it.")],
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    *,
    batches: Batches,
    training: Training,
    pretrained: options.Pretrained = None,
    input: options.Inputs = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "distilled.safetensors"
    ),
    as_json: options.Json = False,
) -> None:
    """Train a thin network towards the model it was cut from.

    The training is kept in OUTPUT.training, after every epoch and on Ctrl-C, until it is done. --pretrained
    checks what it writes on an --input; images of a folder have the size of an --input too.
    """
    console.check_outputs(output, suffixes=(".safetensors",))
    options.check_new_folder(pretrained)
    teacher = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights).model
    needed = pretrained is not None or input or getattr(teacher, "pretrained_cfg", None)
    example = example_of(input, teacher, model, seed=seed, device=device) if needed else None
    loaded = batches.load(data, teacher, example, seed=seed)
    wide = build_model(model, seed=seed, device=device)
    # What 'prune --stream' writes is a folder.
    student = load_checkpoint(thin, wide) if thin.is_dir() else load(thin, wide)
    lesson = Lesson(student, teacher, loaded, device, in_float32(student))
    with console.output(output, ".safetensors") as path:
        history = train(lesson, path, training, seed)
        if pretrained is not None:
            save_pretrained(student, pretrained, example)
            console.tell_written(pretrained)
        if as_json:
            console.show_json(asdict(history))
        else:
            console.show(history_table(history))
    console.tell_written(output)


def train(lesson: Lesson, output: Path, training: Training, seed: int) -> History:
    """Distil and save the student; the training's folder goes when its result is safe."""
    resume = training.resume
    if resume is not None and not (resume / FILE).exists():
        raise SlimfastError(f"{resume}: expected a folder that holds a training to go on with, got none")
    folder = resume or output.with_name(f"{output.name}.training")
    labelled = lesson.data.labelled()
    if not labelled and training.hard is None:
        console.tell("the data has no labels: the student learns from the original alone")
    try:
        history = train_student(
            lesson.student,
            teacher=training.cached(lesson.teacher),
            train=lesson.data.train,
            evaluate=lesson.data.evaluate,
            epochs=training.epochs,
            lr=training.lr,
            loss=training.loss(labelled=labelled),
            optimizer=training.optimizer.value,
            weight_decay=training.weight_decay,
            mixed_precision=training.precision.value,
            ema=training.ema,
            gradient_checkpointing=training.gradient_checkpointing,
            adapter=training.adapter(),
            seed=seed,
            checkpoint=folder,
            resume=resume is not None,
            callback=_show_epoch,
        )
        with in_dtypes(lesson.student, lesson.dtypes):
            save(lesson.student, output)
        (folder / FILE).unlink(missing_ok=True)
    except KeyboardInterrupt:
        if (folder / FILE).exists():
            console.tell(f"the training so far is kept in {folder}: go on with --resume {folder}")
        raise
    finally:
        # It stays where there is something in it.
        with suppress(OSError):
            folder.rmdir()
    return history


def score_of(model: nn.Module, data: Data) -> float | None:
    """Take a model's score on the evaluation batches; None where there are none."""
    if data.evaluate is None:
        return None
    return mean_score(tally(model, data.evaluate, DistillationLoss(soft=0.0, hard=1.0))[1])


def show_score(what: str, model: nn.Module, data: Data) -> None:
    """Say a model's score, where there is data to take it on."""
    score = score_of(model, data)
    if score is not None:
        console.tell(f"{what}: score {score:.4f}")


def _show_epoch(record: EpochRecord) -> None:
    score = "" if record.score is None else f", score {record.score:.4f}"
    console.tell(f"epoch {record.epoch}: loss {record.loss:.4f}{score}, {record.seconds:.1f} s")
