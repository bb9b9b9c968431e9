"""The command that trains a thin network: ``distill``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from slimfast.checkpoints.thin_files import load, save
from slimfast.checkpoints.thin_shards import load_checkpoint
from slimfast.cli import options
from slimfast.cli.models import build_model, default_inputs, load_data, parse_inputs
from slimfast.cli.option_groups import Training, takes_groups
from slimfast.distillation import DistillationLoss, History
from slimfast.distillation import distill as train_student
from slimfast.distillation.resume import FILE
from slimfast.errors import SlimfastError
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.reports.plots import history_table


@takes_groups
def distill(
    model: options.Model,
    thin: Annotated[Path, typer.Argument(help="The thin network, as 'slimfast prune' writes it.")],
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    weights: options.Weights = None,
    *,
    training: Training,
    pretrained: options.Pretrained = None,
    input: options.Inputs = None,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "distilled.safetensors"
    ),
    as_json: options.Json = False,
) -> None:
    """Train a thin network towards the model it was cut from.

    The training is kept in OUTPUT.training, after every epoch and on Ctrl-C, until it is done. --pretrained
    checks what it writes on an --input.
    """
    options.check_outputs(output)
    options.check_new_folder(pretrained)
    teacher = build_model(model, weights=weights, seed=seed)
    example = parse_inputs(input or default_inputs(teacher, model), seed=seed) if pretrained else None
    wide = build_model(model, seed=seed)
    # What 'prune --stream' writes is a folder.
    student = load_checkpoint(thin, wide) if thin.is_dir() else load(thin, wide)
    history = train(student, teacher, data, output, training, seed)
    if pretrained is not None:
        save_pretrained(student, pretrained, example)
        options.tell_written(pretrained)
    if as_json:
        options.show_json(asdict(history))
    else:
        options.show(history_table(history))
    options.tell_written(output)


def train(
    student: nn.Module, teacher: nn.Module, data: str, output: Path, training: Training, seed: int
) -> History:
    """Distil and save the student; the training's folder goes when its result is safe."""
    resume = training.resume
    if resume is not None and not (resume / FILE).exists():
        raise SlimfastError(f"{resume}: expected a folder that holds a training to go on with, got none")
    folder = resume or output.with_name(f"{output.name}.training")
    batches, evaluate = load_data(data)
    try:
        history = train_student(
            student,
            teacher=teacher,
            train=batches,
            evaluate=evaluate,
            epochs=training.epochs,
            lr=training.lr,
            loss=DistillationLoss(temperature=training.temperature),
            ema=training.ema,
            seed=seed,
            checkpoint=folder,
            resume=resume is not None,
        )
        save(student, output)
        (folder / FILE).unlink(missing_ok=True)
    except KeyboardInterrupt:
        if (folder / FILE).exists():
            options.tell(f"the training so far is kept in {folder}: go on with --resume {folder}")
        raise
    finally:
        # It stays where there is something in it.
        with suppress(OSError):
            folder.rmdir()
    return history
