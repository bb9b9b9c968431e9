"""The recipe of a training, step by step: SGD by hand, clipping, the learning rate, weight decay, AdamW."""

import copy

import pytest
import torch
from support.trainer_cases import bits, loader, network
from torch import nn

from slimfast.distillation import DistillationLoss, distill
from slimfast.distillation.recipe import Recipe


def test_one_step_of_sgd_by_hand() -> None:
    # Loss: cross entropy of zero logits for class 0 of 2: gradient (-1/2, 1/2) outer x for the weight.
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.zeros_(student.weight), nn.init.zeros_(student.bias)
    distill(
        student,
        teacher=teacher,
        train=[(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))],
        loss=DistillationLoss(soft=0.0, hard=1.0),
        epochs=1,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        warmup=0.0,
        max_grad_norm=None,
    )
    torch.testing.assert_close(student.weight.detach(), torch.tensor([[0.05, 0.1], [-0.05, -0.1]]))
    torch.testing.assert_close(student.bias.detach(), torch.tensor([0.05, -0.05]))


def test_long_gradients_are_clipped() -> None:
    # As above, but the gradient of norm sqrt(1/2 * (1 + 4 + 1)) = sqrt(3) is scaled to 0.1.
    student = nn.Linear(2, 2)
    nn.init.zeros_(student.weight), nn.init.zeros_(student.bias)
    distill(
        student,
        teacher=nn.Linear(2, 2),
        train=[(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))],
        loss=DistillationLoss(soft=0.0, hard=1.0),
        epochs=1,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        warmup=0.0,
        max_grad_norm=0.1,
    )
    step = torch.cat([student.weight.detach().flatten(), student.bias.detach()])
    assert step.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = Recipe(
        epochs=2,
        steps_per_epoch=5,
        lr=1.0,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=0.0,
        warmup=0.2,
        max_grad_norm=None,
        mixed_precision="no",
        seed=0,
        processes=1,
        loss="",
    )
    assert [recipe.rate(step) for step in (0, 1, 2, 4, 6)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5 + 0.5 * 2**-0.5, 0.5]
    )


@pytest.mark.filterwarnings("ignore:distill. every loss of epoch 1 was 0")
def test_weight_decay_spares_norm_scales_and_biases() -> None:
    # No gradient at all: a student equal to its teacher. Only decay can move a parameter.
    teacher = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    student = copy.deepcopy(teacher)
    for module in (student, teacher):
        module[1].momentum = 0.0
        module.train = lambda mode=True, m=module: m  # type: ignore[method-assign]
    distill(
        student,
        teacher=teacher,
        train=[torch.randn(4, 4)],
        loss=DistillationLoss(hard=0.0),
        epochs=1,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.5,
        warmup=0.0,
    )
    torch.testing.assert_close(student[0].weight, teacher[0].weight * 0.95)
    torch.testing.assert_close(student[0].bias, teacher[0].bias)
    torch.testing.assert_close(student[1].weight, teacher[1].weight)


def test_adamw_and_frozen_parameters(teacher: nn.Module) -> None:
    student = network()
    student[0].weight.requires_grad_(False)
    before = bits(student)
    distill(student, teacher=teacher, train=loader(), epochs=1, optimizer="adamw", lr=1e-3)
    after = bits(student)
    assert after["0.weight"] == before["0.weight"]
    assert after["4.weight"] != before["4.weight"]
