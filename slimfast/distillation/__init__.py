"""Distillation: losses that pull a thin network towards its teacher, and a trainer that uses them."""

from slimfast.distillation.batches import accuracy
from slimfast.distillation.losses import DistillationLoss, Hint, aligned_hints, hint_loss, soft_target_loss
from slimfast.distillation.recipe import EpochRecord, History
from slimfast.distillation.trainer import distill

__all__ = [
    "DistillationLoss",
    "EpochRecord",
    "Hint",
    "History",
    "accuracy",
    "aligned_hints",
    "distill",
    "hint_loss",
    "soft_target_loss",
]
