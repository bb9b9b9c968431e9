"""Distillation: losses that pull a thin network towards its teacher, and a trainer that uses them."""

from slimfast.distillation.distill_loop import distill
from slimfast.distillation.hints import Hint, aligned_hints, hint_loss
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.next_tokens import perplexity
from slimfast.distillation.output_kinds import Output
from slimfast.distillation.output_losses import (
    attention_loss,
    correlation_loss,
    decoupled_loss,
    relational_loss,
    soft_target_loss,
)
from slimfast.distillation.recipe import EpochRecord, History
from slimfast.distillation.scores import accuracy
from slimfast.distillation.teacher_cache import CachedTeacher

__all__ = [
    "CachedTeacher",
    "DistillationLoss",
    "EpochRecord",
    "Hint",
    "History",
    "Output",
    "accuracy",
    "aligned_hints",
    "attention_loss",
    "correlation_loss",
    "decoupled_loss",
    "distill",
    "hint_loss",
    "perplexity",
    "relational_loss",
    "soft_target_loss",
]
