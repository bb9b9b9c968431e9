"""The distillation losses against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from slimfast.distillation import DistillationLoss, Hint, soft_target_loss
from slimfast.distillation.network_outputs import logits_of

LOG3 = math.log(3.0)


class Net(nn.Module):
    """(N, 2, 4, 4) to logits (N, 3), with one convolution of ``width`` channels to hint at."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean(dim=(2, 3)))


def test_soft_targets_by_hand() -> None:
    # At T = 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2):
    # KL = 3/4 log(3/2) + 1/4 log(1/2) = 3/4 log 3 - log 2, times T^2 = 4.
    teacher = torch.tensor([[2 * LOG3, 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = 4 * (0.75 * LOG3 - math.log(2))
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_soft_targets_are_the_mean_over_positions_of_the_class_dim() -> None:
    teacher = torch.tensor([[[2 * LOG3, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    student = torch.zeros(1, 2, 2, dtype=torch.float64)
    expected = 4 * (0.75 * LOG3 - math.log(2)) / 2
    last = soft_target_loss(student, teacher, temperature=2.0)
    second = soft_target_loss(student.mT, teacher.mT, temperature=2.0, class_dim=1)
    assert last.item() == pytest.approx(expected, rel=1e-12)
    assert second.item() == pytest.approx(expected, rel=1e-12)


def test_soft_targets_of_16_bits_are_compared_in_32() -> None:
    teacher = torch.tensor([[12.0, 0.0]]).bfloat16()
    student = torch.tensor([[11.0, 0.0]]).bfloat16()
    loss = soft_target_loss(student, teacher, temperature=1.0)
    assert loss.dtype == torch.float32
    p, q = 1 / (1 + math.exp(-12)), 1 / (1 + math.exp(-11))
    by_hand = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert loss.item() == pytest.approx(by_hand, rel=0.02)


def test_the_weighted_sum_by_hand() -> None:
    teacher = torch.tensor([[2 * LOG3, 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    soft = 4 * (0.75 * LOG3 - math.log(2))
    loss = DistillationLoss(temperature=2.0, soft=0.25, hard=0.75)
    assert loss(student, teacher, torch.tensor([0])).item() == pytest.approx(0.25 * soft + 0.75 * math.log(2))


def test_hard_labels_with_smoothing_by_hand() -> None:
    # Classes (3/4, 1/4), label 0 smoothed by 0.2 to (0.9, 0.1).
    student = torch.tensor([[LOG3, 0.0]])
    loss = DistillationLoss(soft=0.0, hard=1.0, label_smoothing=0.2)
    expected = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert loss(student, None, torch.tensor([0])).item() == pytest.approx(expected)


def test_hard_labels_may_be_probabilities_and_classes_in_any_dim() -> None:
    student = torch.tensor([[[LOG3, 0.0], [0.0, LOG3]]])
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = DistillationLoss(soft=0.0, hard=1.0)
    assert loss(student, None, targets).item() == pytest.approx(-math.log(0.75))
    assert loss(student, None, torch.tensor([[0, 1]])).item() == pytest.approx(-math.log(0.75))
    image = DistillationLoss(soft=0.0, hard=1.0, class_dim=1)
    assert image(student.mT, None, torch.tensor([[0, 0]])).item() == pytest.approx(
        -(math.log(0.75) + math.log(0.25)) / 2
    )


def test_the_gradient_reaches_the_student_alone() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.randn(2, 3, requires_grad=True)
    DistillationLoss(hard=0.0)(student, teacher.detach()).backward()
    # d/ds of T^2 KL is T (softmax(s/T) - softmax(t/T)) / N, with soft = 0.9.
    expected = 0.9 * 4 * (torch.full((2, 3), 1 / 3) - torch.softmax(teacher.detach() / 4, 1)) / 2
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"soft": -1.0}, "weight soft must be >= 0, got -1.0"),
        ({"hard": math.nan}, "weight hard must be >= 0, got nan"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"soft": 0.0, "hard": 0.0}, "every term has weight 0"),
    ],
)
def test_wrong_settings(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationLoss(**arguments)


def test_wrong_calls_say_what_is_missing() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"hard=0.1 needs targets"):
        DistillationLoss()(logits, logits)
    with pytest.raises(ValueError, match=r"student logits are \(2, 3\), the teacher's \(2, 4\)"):
        DistillationLoss()(logits, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    hinted = DistillationLoss(hard=0.0, hints=(Hint("conv", (0, 1, 2)),))
    with pytest.raises(ValueError, match="1 hints, 0 pairs"):
        hinted(logits, logits)
    with (
        pytest.raises(ValueError, match="the student has no module 'conv'"),
        hinted.watching(nn.ReLU(), Net()),
    ):
        pass
    student, teacher, x = Net(2), Net(4), torch.zeros(1, 2, 4, 4)
    with hinted.watching(student, teacher) as features:
        student(x)
        with pytest.raises(ValueError, match="the teacher gave no tensor at 'conv'"):
            features()
        teacher(x)
        with pytest.raises(
            ValueError, match=r"student gives \(1, 2, 4, 4\), the teacher's kept part is \(1, 3, 4, 4\)"
        ):
            features()


def test_logits_of_the_usual_outputs() -> None:
    class Output:
        logits = torch.ones(1)

    x = torch.ones(1)
    for output in (x, {"logits": x}, (x, None), [x], Output()):
        assert logits_of(output).shape == (1,)
    for wrong in ({"scores": x}, (), None, "x"):
        with pytest.raises(TypeError, match="expected logits"):
            logits_of(wrong)
