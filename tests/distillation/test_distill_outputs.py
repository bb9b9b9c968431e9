"""Distillation of networks that are no plain classifiers, and of data in other forms than lists of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainer_cases import batches, bits, network
from torch import Tensor, nn

from slimfast.distillation import CachedTeacher, DistillationLoss, Output, distill
from slimfast.errors import SlimfastError


class Two(nn.Module):
    """Classes and boxes of points, from one body."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.classes, self.boxes = nn.Linear(4, 16), nn.Linear(16, 5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.body(x).relu()
        return self.classes(x), {"boxes": self.boxes(x)}


def points(n: int = 64) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(2))


def perceptron(outputs: int, *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


@pytest.mark.parametrize("labels", ["teacher's", "(N,)", "none"])
def test_values_are_brought_together(labels: str) -> None:
    teacher, student, x = perceptron(1, seed=0), perceptron(1, seed=1), points()
    y = teacher(x).detach()
    before = float((student(x).detach() - y).square().mean())
    batch = {"teacher's": (x, y), "(N,)": (x, y[:, 0]), "none": (x,)}[labels]
    history = distill(
        student,
        teacher=teacher,
        train=[batch] * 10,
        evaluate=[(x, y)],
        loss=DistillationLoss(hard=0.0) if labels == "none" else None,
        epochs=10,
    )
    after = float((student(x).detach() - y).square().mean())
    assert after < before / 4
    assert history.best is not None
    assert history.best.score == pytest.approx(-after, rel=1e-4)


@pytest.mark.parametrize("form", ["(N,)", "(N, 1)", "integers", "several"])
def test_yes_and_no_are_learned(form: str) -> None:
    x = points()
    y = (x[:, :1] > 0).float()
    targets = {"(N,)": y[:, 0], "(N, 1)": y, "integers": y[:, 0].long(), "several": (x[:, :3] > 0).float()}[
        form
    ]
    width = 3 if form == "several" else 1
    teacher, student = perceptron(width, seed=0), perceptron(width, seed=1)
    loss = DistillationLoss(soft=0.0, hard=1.0)
    history = distill(
        student,
        teacher=teacher,
        train=[(x, targets)] * 10,
        evaluate=[(x, targets)],
        loss=loss,
        epochs=15,
        lr=0.3,
    )
    assert history.epochs[-1].score is not None
    assert history.epochs[-1].score > 0.9


def test_all_outputs_are_taught() -> None:
    teacher, student, x = Two(seed=0), Two(seed=1), points()
    y = teacher(x)[0].argmax(1)

    def gap() -> list[float]:
        with torch.no_grad():
            ours, theirs = student(x), teacher(x)
        return [
            float((a - b).square().mean())
            for a, b in ((ours[0], theirs[0]), (ours[1]["boxes"], theirs[1]["boxes"]))
        ]

    before = gap()
    distill(student, teacher=teacher, train=[(x, y)] * 10, epochs=15, weight_decay=0.0)
    assert all(after < first / 2 for after, first in zip(gap(), before, strict=True))


def test_only_the_named_output_is_taught() -> None:
    teacher, student, x = Two(seed=0), Two(seed=1), points()
    before = bits(student)
    loss = DistillationLoss(hard=0.0, outputs=(Output("1.boxes"),))
    distill(student, teacher=teacher, train=[(x,)] * 3, loss=loss, epochs=1, weight_decay=0.0)
    after = bits(student)
    assert after["classes.weight"] == before["classes.weight"]
    assert after["boxes.weight"] != before["boxes.weight"]


def test_targets_and_scores_of_several_outputs() -> None:
    teacher, student, x = Two(seed=0), Two(seed=1), points()
    y = {"0": teacher(x)[0].argmax(1), "1.boxes": torch.full((64, 2), 0.3)}
    history = distill(teacher, teacher=student, train=[(x, y)], evaluate=[(x, y)], lr=1e-9, epochs=1)
    boxes = float((teacher(x)[1]["boxes"].detach() - 0.3).square().mean())
    assert history.epochs[0].score == pytest.approx((1.0 - boxes) / 2, rel=1e-4)


def test_a_student_with_auxiliary_outputs_in_training() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron(3, seed=1)

        def forward(self, x: Tensor) -> Any:
            x = self.inner(x)
            return {"logits": x, "aux": x[:, :1]} if self.training else x

    student, x = Aux(), points()
    history = distill(
        student, teacher=perceptron(3, seed=0), train=[(x, torch.zeros(64).long())] * 5, epochs=4
    )
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_a_batch_without_a_label_that_counts_trains_nothing() -> None:
    teacher, student, x = perceptron(3, seed=0), perceptron(3, seed=1), points()
    before = bits(student)
    train = [(x, torch.full((64,), -100))]
    with pytest.warns(UserWarning, match="every loss of epoch 1 was 0, so that nothing was taught"):
        history = distill(student, teacher=teacher, train=train, epochs=1, weight_decay=0.0)
    assert history.epochs[0].loss == 0
    assert bits(student) == before


def test_classes_that_both_networks_rule_out() -> None:
    class Masked(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.inner = perceptron(4, seed=seed)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).masked_fill(torch.tensor([0, 0, 0, 1]).bool(), -torch.inf)

    history = distill(Masked(1), teacher=Masked(0), train=[(points(), torch.arange(64) % 3)] * 4, epochs=3)
    assert history.epochs[-1].loss < history.epochs[0].loss
    with pytest.raises(SlimfastError, match="the loss is inf at epoch 1, step 1"):
        distill(Masked(1), teacher=Masked(0), train=[(points(), torch.arange(64) % 4)], epochs=1)


def test_an_ignored_label_is_named_in_the_refusal(teacher: nn.Module) -> None:
    train = [(batches()[0][0], torch.tensor([0, 1, 2, 255, 0, 1, 2, 255]))]
    with pytest.raises(SlimfastError, match=r"target 255 .* 3 classes; .*ignore_index=255"):
        distill(network(), teacher=teacher, train=train, epochs=1)
    history = distill(
        network(),
        teacher=teacher,
        train=train,
        evaluate=train,
        loss=DistillationLoss(ignore_index=255),
        epochs=1,
    )
    assert history.epochs[0].score in [n / 6 for n in range(7)]


def test_batches_to_evaluate_that_run_out(teacher: nn.Module) -> None:
    class Once:
        def __init__(self) -> None:
            self.left = [batches(), batches()]

        def __iter__(self) -> Iterator[Any]:
            return iter(self.left.pop() if self.left else [])

    with pytest.raises(SlimfastError, match="no targets in the batches"):
        distill(network(), teacher=teacher, train=batches(), evaluate=Once(), epochs=3)


def test_a_cache_refuses_several_outputs(tmp_path: Path) -> None:
    cached = CachedTeacher(Two(seed=0), tmp_path / "logits")
    with pytest.raises(SlimfastError, match=r"teacher with one output, got 0, 1\.boxes"):
        distill(Two(seed=1), teacher=cached, train=[points()], loss=DistillationLoss(hard=0.0), epochs=1)
