"""An accelerator that accumulates gradients: each step is that of one larger batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slimfast.distillation import DistillationLoss, distill
from slimfast.errors import SlimfastError

SOFT = DistillationLoss(hard=0.0)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double(), teacher.double()


def samples(n: int) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(batches: list[torch.Tensor], every: int | None, **options: object) -> list[torch.Tensor]:
    accelerate = pytest.importorskip("accelerate")
    student, teacher = pair()
    given = None if every is None else accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every)
    settings: dict[str, object] = {"epochs": 2, "warmup": 0.0, "lr": 0.1, "progress": False, "loss": SOFT}
    distill(student, teacher=teacher, train=batches, accelerator=given, **(settings | options))  # type: ignore[arg-type]
    return [parameter.detach() for parameter in student.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 0.01}, {"optimizer": "adamw"}, {"ema": 0.9}], ids=str
)
@pytest.mark.parametrize("every", [1, 2, 4])
def test_accumulated_batches_are_one_large_batch(every: int, options: dict[str, object]) -> None:
    x = samples(64)
    for ours, theirs in zip(
        trained(list(x.split(8)), every, **options),
        trained(list(x.split(8 * every)), None, **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_is_left_of_an_epoch_is_a_mean_too() -> None:
    x = samples(40)
    large = [x[:24], x[24:]]
    for ours, theirs in zip(
        trained(list(x.split(8)), 3, epochs=1, momentum=0.0, lr=0.05),
        by_hand(large, rates=(0.05, 0.05 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 5)).item()))),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def by_hand(batches: list[torch.Tensor], rates: tuple[float, ...]) -> list[torch.Tensor]:
    student, teacher = pair()
    for x, rate in zip(batches, rates, strict=True):
        student.zero_grad()
        SOFT(student(x), teacher(x).detach(), None).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        with torch.no_grad():
            for parameter in student.parameters():
                assert parameter.grad is not None
                decay = 5e-4 if parameter.dim() > 1 else 0.0
                parameter -= rate * (parameter.grad + decay * parameter)
    return [parameter.detach() for parameter in student.parameters()]


def test_another_accumulation_is_another_training(tmp_path) -> None:
    accelerate = pytest.importorskip("accelerate")
    student, teacher = pair()
    batches = list(samples(32).split(8))
    same = {"teacher": teacher, "train": batches, "loss": SOFT, "progress": False, "checkpoint": tmp_path}
    distill(copy.deepcopy(student), epochs=1, **same)  # type: ignore[arg-type]
    given = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    with pytest.raises(SlimfastError, match="accumulation None there, 2 here"):
        distill(student, epochs=1, resume=True, accelerator=given, **same)  # type: ignore[arg-type]
