"""What a cache of a teacher knows a sample and its teacher by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.distillation import CachedTeacher


class Pair(nn.Module):
    """Tells its arguments apart, takes a flag, and has a dropout and a buffer that no state dict has."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor([scale]), persistent=False)

    def forward(self, x, y=None, *, flip=False, mode=None):
        y = torch.ones_like(x) if y is None else y
        out = self.drop(self.layer(x)) * self.scale - (2 if flip else 1) * self.layer(y)
        return -out if mode == "minus" else out


def tensors():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)


def test_samples_are_known_by_the_names_and_the_plain_values_of_arguments(tmp_path):
    teacher, (x, y) = Pair().eval(), tensors()
    cached = CachedTeacher(teacher, tmp_path / "logits")
    calls = [
        {"x": x, "y": y}, {"x": y, "y": x}, {"y": y, "x": x, "flip": True}, {"x": x, "y": y, "flip": False},
        {"x": x}, {"x": x, "y": x}, {"x": x, "y": y, "mode": "minus"}, {"x": x, "y": y, "mode": None},
    ]  # fmt: skip
    for _ in range(2):
        for call in calls:
            torch.testing.assert_close(cached(**call), teacher(**call))
    for args in [(x,), (x, x), (x, y), (y, x)]:
        torch.testing.assert_close(cached(*args), teacher(*args))
    known = len(cached)
    again = CachedTeacher(teacher, tmp_path / "logits")
    assert len(again) == known
    for call in calls:
        # In another batch and another order.
        turned = {name: v.flip(0) if isinstance(v, torch.Tensor) else v for name, v in call.items()}
        torch.testing.assert_close(again(**turned), teacher(**turned))
    assert len(again) == known


def test_arguments_by_order_and_by_name_at_once_are_refused(tmp_path):
    cached, (x, y) = CachedTeacher(Pair(), tmp_path / "logits"), tensors()
    for args, named in [((x,), {"y": y}), ((), {})]:
        with pytest.raises(TypeError, match="arguments by their order, or all by name"):
            cached(*args, **named)


def test_a_teacher_in_train_mode_is_kept_as_in_eval_mode(tmp_path):
    teacher, (x, y) = Pair().train(), tensors()
    found = CachedTeacher(teacher, tmp_path / "logits")(x, y)
    assert teacher.training
    assert teacher.drop.training
    torch.testing.assert_close(found, teacher.eval()(x, y))


def test_a_teacher_that_was_changed_is_refused(tmp_path):
    teacher, (x, y) = Pair().eval(), tensors()
    cached = CachedTeacher(teacher, tmp_path / "logits")
    cached(x, y)
    # Writing the same values changes nothing.
    teacher.load_state_dict(teacher.state_dict())
    cached(y, x)
    with torch.no_grad():
        teacher.layer.bias.add_(1.0)
    with pytest.raises(slimfast.SlimfastError, match="got one of other weights"):
        cached(x, y)


def test_buffers_that_no_state_dict_has_tell_teachers_apart(tmp_path):
    x, y = tensors()
    CachedTeacher(Pair(1.0), tmp_path / "logits")(x, y)
    with pytest.raises(slimfast.SlimfastError, match="expected logits of this teacher"):
        CachedTeacher(Pair(2.0), tmp_path / "logits")
