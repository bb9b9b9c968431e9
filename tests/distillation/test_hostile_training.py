"""A training's state that a stranger wrote: one line names the folder and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.hostile_cases import refused
from torch import nn

from slimfast import (
    distill,
)
from slimfast.distillation.resume import FILE


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epoch", "1", "epoch is a str"),
        ("recipe", None, "recipe is a NoneType"),
        ("student", [1], "student is a list"),
        ("losses", 1.0, "losses is a float"),
        ("losses", torch.zeros(7), "does not fit this one: RuntimeError"),
        ("optimizer", {}, "does not fit this one: KeyError"),
        ("records", [{"epoch": 1, "code": 2}], "does not fit this one: TypeError"),
        ("student", {"0.weight": torch.zeros(2, 2)}, "another student: 0.weight (2, 2), here (8, 6)"),
    ],
)
def test_a_training_that_is_not_ours(
    name: str, value: object, message: str, model: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    data = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))] * 2

    def train(resume: bool) -> None:
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        distill(student, teacher=model, train=data, epochs=1, checkpoint=tmp_path, resume=resume)

    train(False)
    train(True)
    state = torch.load(tmp_path / FILE, weights_only=True)
    torch.save({**state, name: value}, tmp_path / FILE)
    line = refused(train, True, names="student" if "another student" in message else str(tmp_path))
    assert message in line
