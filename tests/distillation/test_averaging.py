"""The moving average of the weights: its formula, and a training that is scored and ends with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from slimfast.distillation import distill
from slimfast.distillation.averaging import MovingAverage


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = MovingAverage(model, 0.5)
        model.weight.fill_(3.0)
        average.update()
        # (1 + 1) / (10 + 1) of the old value in the first update.
        first = 2 / 11 * 1.0 + 9 / 11 * 3.0
        assert average.tensors["weight"].item() == pytest.approx(first)
        model.weight.fill_(5.0)
        average.update()
        second = 3 / 12 * first + 9 / 12 * 5.0
        assert average.tensors["weight"].item() == pytest.approx(second)
        average.updates = 100
        average.update()
        assert average.tensors["weight"].item() == pytest.approx(0.5 * second + 0.5 * 5.0)
    with average.used():
        assert model.weight.item() == pytest.approx(0.5 * second + 0.5 * 5.0)
    assert model.weight.item() == 5.0


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(4, 3))


def test_a_training_is_scored_and_ends_with_the_average() -> None:
    student, teacher = networks()
    generator = torch.Generator().manual_seed(1)
    train = [(torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))] * 3
    seen: list[torch.Tensor] = []

    def score(model: nn.Module) -> float:
        seen.append(model[0].weight.detach().clone())  # type: ignore[index]
        return float(len(seen))

    distill(student, teacher=teacher, train=train, evaluate=score, epochs=2, ema=0.9, progress=False)
    assert torch.equal(student[0].weight, seen[-1])  # type: ignore[index]
    plain, teacher = networks()
    distill(plain, teacher=teacher, train=train, epochs=2, progress=False)
    assert not torch.equal(plain[0].weight, seen[-1])  # type: ignore[index]
    averaged, teacher = networks()
    distill(averaged, teacher=teacher, train=train, epochs=2, ema=0.9, progress=False)
    assert torch.equal(averaged[0].weight, seen[-1])  # type: ignore[index]


def test_an_average_is_resumed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    train = [(torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))] * 3
    whole, teacher = networks()
    distill(whole, teacher=teacher, train=train, epochs=2, ema=0.9, progress=False)
    halved, teacher = networks()

    class Stop(Exception):
        pass

    def stop(record: object) -> None:
        raise Stop

    arguments = {"teacher": teacher, "train": train, "epochs": 2, "ema": 0.9, "progress": False}
    with pytest.raises(Stop):
        distill(halved, checkpoint=tmp_path, callback=stop, **arguments)  # type: ignore[arg-type]
    fresh, _ = networks()
    distill(fresh, checkpoint=tmp_path, resume=True, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))


def test_a_decay_outside_0_to_1_is_refused() -> None:
    student, teacher = networks()
    with pytest.raises(ValueError, match=r"ema must be in \(0, 1\) or None, got 1"):
        distill(student, teacher=teacher, train=[torch.randn(2, 4)], ema=1.0, progress=False)
