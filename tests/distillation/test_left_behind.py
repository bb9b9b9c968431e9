"""What a training must not take over, touch or take for granted."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import slimfast
from slimfast.distillation import CachedTeacher, DistillationLoss, distill
from slimfast.distillation.averaging import MovingAverage
from slimfast.distillation.resume import FILE


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4))
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)), teacher


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) for _ in range(3)]


def trained(student: nn.Module, teacher: nn.Module, **options: object) -> None:
    settings: dict[str, object] = {"epochs": 1, "loss": DistillationLoss(hard=0.0), "progress": False}
    settings["train"] = batches()
    distill(student, teacher=teacher, **(settings | options))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("kind", ["target", "shape", "loss"])
def test_a_later_batch_that_fails_is_named(kind: str) -> None:
    student, teacher = pair()
    generator = torch.Generator().manual_seed(1)
    train = [(x, torch.randint(4, (8,), generator=generator)) for x in batches()]
    loss: object = None
    if kind == "target":
        train[2] = (train[2][0], train[2][1] + 4)
    elif kind == "shape":
        train[2] = (torch.randn(8, 7), train[2][1])
    else:
        seen: list[int] = []

        def fails(ours: torch.Tensor, theirs: torch.Tensor, _: object) -> torch.Tensor:
            seen.append(1)
            # The first one is the look at the first batch.
            return (ours - theirs).square().mean() if len(seen) < 4 else {}["nothing"]  # type: ignore[no-any-return]

        loss = fails
    with pytest.raises(slimfast.SlimfastError, match="batch 3 of epoch 1 fails on inputs") as caught:
        trained(student, teacher, train=train, loss=loss)
    assert "\n" not in str(caught.value)


def test_a_training_that_teaches_nothing_says_so() -> None:
    student, teacher = pair()
    ignored = [(x, torch.full((8,), -100)) for x in batches()]
    with pytest.warns(UserWarning, match="every loss of epoch 1 was 0, so that nothing was taught"):
        trained(student, teacher, train=ignored, loss=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(student, teacher)


def test_a_training_goes_on_towards_its_own_teacher(tmp_path: Path) -> None:
    student, teacher = pair()
    folder = tmp_path / "training"
    trained(copy.deepcopy(student), teacher, checkpoint=folder)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other[2].weight.mul_(1.5)
    with pytest.raises(slimfast.SlimfastError, match="towards a teacher of other weights"):
        trained(copy.deepcopy(student), other, checkpoint=folder, resume=True)
    # The same one, kept in a file now.
    trained(student, CachedTeacher(teacher, tmp_path / "logits"), checkpoint=folder, resume=True)
    # A training of before teachers were told apart goes on.
    state = torch.load(folder / FILE, weights_only=True)
    del state["teacher"]
    torch.save(state | {"schema": 2}, folder / FILE)
    trained(pair()[0], other, checkpoint=folder, resume=True)
