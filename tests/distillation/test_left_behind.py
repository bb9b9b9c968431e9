"""What a training must not take over, touch or take for granted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slimfast.distillation import DistillationLoss, distill
from slimfast.distillation.averaging import MovingAverage


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4))
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)), teacher


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) for _ in range(3)]


def trained(student: nn.Module, teacher: nn.Module, **options: object) -> None:
    settings: dict[str, object] = {"epochs": 1, "loss": DistillationLoss(hard=0.0), "progress": False}
    distill(student, teacher=teacher, train=batches(), **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_before_are_none_of_the_training(frozen: bool) -> None:
    clean, teacher = pair()
    # Also those of what is not trained, in whose norm the others are clipped.
    clean[2].bias.requires_grad_(not frozen)
    left = copy.deepcopy(clean)
    for parameter in left.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    trained(clean, teacher)
    trained(left, teacher)
    for ours, theirs in zip(left.parameters(), clean.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_student_that_would_train_its_teacher_is_refused() -> None:
    student, teacher = pair()
    before = copy.deepcopy(teacher.state_dict())
    student[2].bias = teacher[2].bias
    with pytest.raises(ValueError, match=r"student's 2\.bias is the teacher's 2\.bias, which .* change"):
        trained(student, teacher)
    # What is not trained may be of both.
    student[2].bias.requires_grad_(False)
    trained(student, teacher)
    student, _ = pair()
    student[2].bias.data = teacher[2].bias.data
    with pytest.raises(ValueError, match=r"student's 2\.bias is the teacher's"):
        trained(student, teacher)
    student = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4))
    student[1].running_var = teacher[1].running_var
    with pytest.raises(ValueError, match=r"1\.running_var is the teacher's 1\.running_var"):
        trained(student, teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["epochs", "steps_per_epoch"])
@pytest.mark.parametrize("value", [1.5, 2.0, "2", True])
def test_numbers_of_steps_are_integers(name: str, value: object) -> None:
    student, teacher = pair()
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        trained(student, teacher, **{name: value})


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda ours, theirs, _: (ours - theirs).square().mean(1), r"shape \(8,\)"),
        (lambda ours, theirs, _: 1.0, "float"),
        (lambda ours, theirs, _: None, "NoneType"),
        (lambda ours, theirs, _: (ours.mean(), theirs.mean()), "tuple"),
    ],
)
def test_own_losses_give_one_number(loss: object, found: str) -> None:
    student, teacher = pair()
    with pytest.raises(TypeError, match=f"a tensor of one number, got {found}"):
        trained(student, teacher, loss=loss)


def test_an_own_loss_may_keep_its_dims() -> None:
    kept, teacher = pair()
    plain = copy.deepcopy(kept)
    trained(kept, teacher, loss=lambda ours, theirs, _: (ours - theirs).square().mean().reshape(1, 1))
    trained(plain, teacher, loss=lambda ours, theirs, _: (ours - theirs).square().mean())
    assert torch.equal(kept[0].weight, plain[0].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_average_of_16_bits_moves(dtype: torch.dtype) -> None:
    model = nn.Linear(1, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = MovingAverage(model, 0.999)
        average.updates = 100_000
        model.weight.fill_(1.5)
        for _ in range(1000):
            average.update()
        with average.used():
            expected = 1.5 - 0.5 * 0.999**1000
            assert model.weight.item() == pytest.approx(expected, rel=2**-8)
    assert model.weight.item() == 1.5
    assert model.weight.dtype == dtype
