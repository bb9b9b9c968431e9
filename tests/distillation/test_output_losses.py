"""Distillation losses between outputs, each against a value worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from slimfast.distillation import (
    DistillationLoss,
    Hint,
    attention_loss,
    correlation_loss,
    decoupled_loss,
    relational_loss,
    soft_target_loss,
)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_decoupled_by_hand() -> None:
    # Probabilities (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4), the target is class 0: b = (1/2, 1/2) and (1/4, 3/4),
    # and among the others (1/2, 1/2) and (2/3, 1/3).
    teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()
    student = torch.tensor([[1.0, 2.0, 1.0]]).log()
    target_part = kl([0.5, 0.5], [0.25, 0.75])
    other_part = kl([0.5, 0.5], [2 / 3, 1 / 3])
    found = decoupled_loss(student, teacher, torch.tensor([0]), temperature=1.0)
    assert float(found) == pytest.approx(target_part + 8 * other_part, rel=1e-5)
    # At temperature 2 the same probabilities come from logits twice as large, and count four times.
    found = decoupled_loss(2 * student, 2 * teacher, torch.tensor([0]), temperature=2.0, other_weight=1.0)
    assert float(found) == pytest.approx(4 * (target_part + other_part), rel=1e-5)


def test_decoupled_with_the_teachers_weight_is_the_soft_target_loss() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 7, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64)
    rest = 1 - float((teacher / 3).softmax(-1)[0, 4])
    found = decoupled_loss(student, teacher, torch.tensor([4]), temperature=3.0, other_weight=rest)
    assert float(found) == pytest.approx(float(soft_target_loss(student, teacher, temperature=3.0)))


def test_correlation_by_hand() -> None:
    # Rows of probabilities (1/2, 1/4, 1/4), (1/4, 1/4, 1/2) against (1/4, 1/2, 1/4), (1/4, 1/4, 1/2).
    teacher = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    student = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).log()
    # Centred rows are (2, -1, -1) / 12 and (-1, 2, -1) / 12: correlation -3 / 6; the second rows agree.
    between = 1 - (-0.5 + 1.0) / 2
    # Columns of the student: constant, (1/2, 1/4), (1/4, 1/2); of the teacher: (1/2, 1/4), constant, as ours.
    within = 1 - (0.0 + 0.0 + 1.0) / 3
    assert float(correlation_loss(student, teacher)) == pytest.approx(between + within, rel=1e-5)
    assert float(correlation_loss(2 * student, 2 * teacher, temperature=2.0)) == pytest.approx(
        4 * (between + within), rel=1e-5
    )
    same = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert float(correlation_loss(same, same)) == pytest.approx(0.0, abs=1e-6)


def test_relational_by_hand() -> None:
    # A right triangle with sides 3, 4, 5 against one that is equilateral, both plain in the plane.
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    # In units of the mean of 4 the sides are 3/4, 1, 5/4, and all 1: errors 1/4, 0, 1/4, twice of 9 each.
    distance = 2 * (0.5 * 0.25**2 * 2) / 9
    # Cosines at the three corners: 0, 3/5, 4/5 against 1/2; each stands twice of 27, the rest agrees.
    angle = 2 * sum(0.5 * (c - 0.5) ** 2 for c in (0.0, 0.6, 0.8)) / 27
    assert float(relational_loss(student, teacher)) == pytest.approx(distance + 2 * angle)
    turned = torch.cat(
        [5 * teacher @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double() + 1, torch.zeros(3, 2)], 1
    )
    assert float(relational_loss(turned, teacher)) == pytest.approx(0.0, abs=1e-12)


def test_relational_has_a_gradient_where_samples_coincide() -> None:
    x = torch.zeros(3, 2, requires_grad=True)
    relational_loss(x, torch.randn(3, 2)).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_attention_by_hand() -> None:
    # Sums of squares over the channels: (9, 16) and (0, 1), of norm sqrt(337) and 1.
    student = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    teacher = torch.tensor([[[0.0, 1.0]]])
    norm = math.sqrt(9**2 + 16**2)
    expected = (9 / norm) ** 2 + (16 / norm - 1) ** 2
    assert float(attention_loss(student, teacher)) == pytest.approx(expected, rel=1e-6)
    assert float(attention_loss(2 * student, student)) == pytest.approx(0.0, abs=1e-12)


def test_terms_are_combined_by_their_weights() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    targets = torch.randint(5, (6,))
    features = ((torch.randn(6, 3, 4), torch.randn(6, 3, 4)),)
    loss = DistillationLoss(
        temperature=2.0, soft=0.0, hard=0.0, hint=0.0, hints=(Hint("a"),),
        decoupled=0.5, correlation=2.0, relational=3.0, attention=4.0,
    )  # fmt: skip
    expected = (
        0.5 * decoupled_loss(student, teacher, targets, temperature=2.0)
        + 2.0 * correlation_loss(student, teacher, temperature=2.0)
        + 3.0 * relational_loss(student, teacher)
        + 4.0 * attention_loss(*features[0])
    )
    assert torch.allclose(loss(student, teacher, targets, features), expected)
    assert sorted(loss.terms(student, teacher, targets, features)) == [
        "attention", "correlation", "decoupled", "relational",
    ]  # fmt: skip


def test_classes_may_be_in_another_dim() -> None:
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randint(5, (2, 3))
    last = DistillationLoss(soft=0.0, hard=0.0, decoupled=1.0, correlation=1.0)
    second = DistillationLoss(soft=0.0, hard=0.0, decoupled=1.0, correlation=1.0, class_dim=1)
    moved = last(student.transpose(1, 2), teacher.transpose(1, 2), targets)
    assert torch.allclose(second(student, teacher, targets), moved)


def test_wrong_weights_and_targets() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="every term has weight 0"):
        DistillationLoss(soft=0.0, hard=0.0, attention=1.0)
    with pytest.raises(ValueError, match="weight relational must be >= 0, got -1"):
        DistillationLoss(relational=-1.0)
    with pytest.raises(ValueError, match=r"decoupled=1.0 needs targets; without them pass decoupled=0"):
        DistillationLoss(hard=0.0, decoupled=1.0)(x, x)
    with pytest.raises(ValueError, match="decoupled needs targets that are class indices"):
        DistillationLoss(hard=0.0, decoupled=1.0)(x, x, x.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_widened(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype)
    for found, wide in (
        (correlation_loss(a, b), correlation_loss(a.float(), b.float())),
        (relational_loss(a, b), relational_loss(a.float(), b.float())),
        (attention_loss(a[:, None], b[:, None]), attention_loss(a[:, None].float(), b[:, None].float())),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, wide)


def test_the_features_come_from_the_hinted_modules() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
    loss = DistillationLoss(soft=0.0, hard=0.0, hint=0.0, attention=1.0, hints=(Hint("0", dim=-1),))
    x = torch.randn(5, 2, 3)
    with loss.watching(student, teacher) as features:
        value = loss(student(x), teacher(x), None, features())
    expected = attention_loss(student(x).movedim(-1, 1), teacher(x).movedim(-1, 1))
    assert torch.allclose(value, expected)
