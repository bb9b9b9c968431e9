"""Options of a training: how a thin network is taught."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.cli import options
from slimfast.distillation import CachedTeacher, DistillationLoss
from slimfast.errors import SlimfastError

GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Keep no activations inside the student's blocks: a third more time for less memory.",
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(
        metavar="RANK",
        help="Train low-rank adapters of this rank beside the weights, and merge them at the end.",
        min=1,
    ),
]
LoraTarget = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A linear layer that gets an adapter, by the end of its name; repeat it for more. By default "
        "all but the last.",
    ),
]
TeacherCache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Keep the teacher's outputs: what is there is not computed again. Same samples."
    ),
]
TeacherTop = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="In --teacher-cache, only the K most probable tokens of a language model's positions.",
        min=1,
    ),
]


@dataclass(frozen=True, slots=True)
class Training:
    """How a thin network is trained."""

    epochs: options.Epochs = 10
    lr: options.LearningRate = 0.05
    optimizer: Annotated[options.Optimizer, typer.Option(help="How weights are moved.")] = (
        options.Optimizer.sgd
    )
    weight_decay: Annotated[float, typer.Option(help="Decay of the weights.", min=0.0)] = 5e-4
    soft: options.Soft = 0.9
    hard: options.Hard = None
    temperature: options.Temperature = 4.0
    precision: Annotated[options.Precision, typer.Option(help="Arithmetic of the training.")] = (
        options.Precision.no
    )
    ema: options.Ema = None
    gradient_checkpointing: GradientCheckpointing = False
    lora: Lora = None
    lora_target: LoraTarget = None
    teacher_cache: TeacherCache = None
    teacher_top: TeacherTop = None
    resume: options.Resume = None

    def __post_init__(self) -> None:
        # Before anything is built or measured.
        if self.lora_target and self.lora is None:
            raise SlimfastError("--lora-target: expected --lora RANK beside it, got none")
        if self.lora is not None and importlib.util.find_spec("peft") is None:
            raise SlimfastError("--lora: needs peft: install the extra 'slimfast[lora]'")
        if self.teacher_top is not None and self.teacher_cache is None:
            raise SlimfastError("--teacher-top: expected --teacher-cache FILE beside it, got none")

    def loss(self, *, labelled: bool) -> DistillationLoss:
        """Make the loss; without labels there is no weight on them, unless one was asked for."""
        hard = (0.1 if labelled else 0.0) if self.hard is None else self.hard
        return DistillationLoss(temperature=self.temperature, soft=self.soft, hard=hard)

    def adapter(self) -> Any:
        """Make the configuration of the adapters; None where none were asked for."""
        if self.lora is None:
            return None
        # Twice the rank leaves the adapters' rate where that of others is.
        return importlib.import_module("peft").LoraConfig(
            r=self.lora, lora_alpha=2 * self.lora, target_modules=self.lora_target or "all-linear"
        )

    def cached(self, teacher: nn.Module) -> nn.Module:
        """Put the file of its outputs before the teacher, if there is to be one."""
        if self.teacher_cache is None:
            return teacher
        top, temperature = self.teacher_top, self.temperature
        return CachedTeacher(teacher, self.teacher_cache, top=top, temperature=temperature)
