"""The loss towards the top of a teacher's logits: exact over what is known and the rest as one."""

from __future__ import annotations

import pytest
import torch
from support.tiny_decoders import VOCABULARY
from torch import Tensor

from slimfast.distillation import soft_target_loss
from slimfast.distillation.top_logits import top_logits, top_target_loss


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_every_class_it_is_the_soft_loss(temperature: float) -> None:
    student, teacher = logits(3, 5), logits(3, 5, seed=1)
    counted = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    found = top_target_loss(
        student, top_logits(teacher, VOCABULARY, temperature), temperature=temperature, counted=counted
    )
    expected = soft_target_loss(student, teacher, temperature=temperature, counted=counted)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_it_is_the_divergence_of_the_top_and_of_the_rest_written_out() -> None:
    student, teacher = logits(4).double(), logits(4, seed=1).double()
    temperature, k = 2.0, 3
    expected = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = (theirs / temperature).softmax(0), (ours / temperature).softmax(0)
        top = p.argsort(descending=True)[:k]
        p_rest, q_rest = 1 - p[top].sum(), 1 - q[top].sum()
        expected += float((p[top] * (p[top] / q[top]).log()).sum() + p_rest * (p_rest / q_rest).log()) / 4
    found = top_target_loss(student, top_logits(teacher, k, temperature), temperature=temperature)
    assert found.item() == pytest.approx(expected * temperature**2, rel=1e-6)


def test_it_rises_with_the_top_up_to_the_whole_and_is_nothing_between_equals() -> None:
    student, teacher = logits(6), logits(6, seed=1)
    values = [
        top_target_loss(student, top_logits(teacher, k, 1.0), temperature=1.0).item() for k in (1, 4, 16, 40)
    ]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(soft_target_loss(student, teacher, temperature=1.0).item(), rel=1e-5)
    same = teacher.clone().requires_grad_()
    nothing = top_target_loss(same, top_logits(teacher, 4, 1.0), temperature=1.0)
    nothing.backward()
    assert nothing.item() == pytest.approx(0.0, abs=1e-6)
    assert same.grad is not None
    assert float(same.grad.abs().max()) < 1e-6


def test_gradients_are_finite_beside_sure_and_ruled_out_tokens() -> None:
    student, teacher = logits(4).requires_grad_(), logits(4, seed=1)
    teacher[0, 3] = 400.0
    teacher[1, 5:] = -torch.inf
    teacher[2, :] = -torch.inf
    with torch.no_grad():
        student[3, 7:] = -torch.inf
    loss = top_target_loss(student, top_logits(teacher, 8, 1.0), temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert not student.grad[2].any()


def test_another_temperature_or_shape_is_refused() -> None:
    top = top_logits(logits(2), 4, 1.0)
    with pytest.raises(ValueError, match=r"expected temperature=1, at which .* top 4 .* got 4$"):
        top_target_loss(logits(2), top, temperature=4.0)
    with pytest.raises(ValueError, match=r"student logits are \(3, 40\), the teacher's \(2, 40\)"):
        top_target_loss(logits(3), top, temperature=1.0)
