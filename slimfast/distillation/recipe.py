"""What decides a training, and what came of it: plain frozen data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral

import torch
from torch import nn

from slimfast.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings that decide a training; a resumed run must have the same ones. See ``distill``.

    ``accumulation`` is how many batches make a step of the optimizer; None for one.
    """

    epochs: int
    steps_per_epoch: int
    lr: float
    optimizer: str
    momentum: float
    weight_decay: float
    warmup: float
    max_grad_norm: float | None
    mixed_precision: str
    seed: int
    processes: int
    loss: str
    ema: float | None = None
    adapter: str | None = None
    accumulation: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, Integral):
                raise ArgumentTypeError(f"distill: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ArgumentError(f"distill: {name} must be at least 1, got {value}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"distill: lr must be positive, got {self.lr}")
        if self.optimizer not in ("sgd", "adamw"):
            raise ArgumentError(f"distill: optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"distill: momentum must be in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise ArgumentError(f"distill: weight_decay must be >= 0, got {self.weight_decay}")
        if not 0 <= self.warmup < 1:
            raise ArgumentError(f"distill: warmup is a share of the steps in [0, 1), got {self.warmup}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ArgumentError(f"distill: ema must be in (0, 1) or None, got {self.ema}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ArgumentError(f"distill: max_grad_norm must be positive or None, got {self.max_grad_norm}")

    def rate(self, step: int) -> float:
        """Compute the rate of a step, counted from 0 over all epochs: linear warm-up, then half a cosine.

        Warm-up as in Goyal et al. 2017; the cosine is Loshchilov and Hutter 2017 ("SGDR") without restarts.
        """
        total = self.epochs * self.steps_per_epoch
        warm = round(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer of the trainable parameters; those with fewer than two dims are not decayed."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise ArgumentError("distill: the student has no parameter that requires a gradient")
        groups = [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)

    def differences(self, other: dict[str, object]) -> str:
        """List the settings in which ``other``, a recipe as a dict, is not this one; empty where it is."""
        ours = asdict(self)
        names = [name for name in ours if ours[name] != other.get(name)]
        return ", ".join(f"{name} {other.get(name)} there, {ours[name]} here" for name in names)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """A finished epoch: number from 1, mean training loss, last learning rate, score if any, and seconds."""

    epoch: int
    loss: float
    lr: float
    score: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class History:
    """All epochs of a run, those before a resume included, and the one with the highest score, if any."""

    epochs: tuple[EpochRecord, ...]
    best: EpochRecord | None
