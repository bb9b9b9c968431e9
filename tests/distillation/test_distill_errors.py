"""Distillation says early, in one line, what is wrong with networks, data and settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainer_cases import CLASSES, batches, bits, network, samples
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from slimfast.distillation import distill
from slimfast.distillation.resume import FILE
from slimfast.errors import SlimfastError


class Exploding(nn.Module):
    """Gives NaN from its ``at``-th training step on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.count = nn.Linear(4, CLASSES), at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += self.training
        return self.inner(x) * (float("nan") if self.count >= self.at else 1.0)


def test_a_loss_that_is_not_finite_names_its_step(teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SlimfastError, match=r"the loss is nan at epoch 2, step 3 of 6 \(learning rate 0\.0"):
        distill(Exploding(9), teacher=teacher, train=batches(), epochs=3, checkpoint=tmp_path)
    # What is kept is the state before it.
    state = torch.load(tmp_path / FILE, weights_only=True)
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["student"].values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": []}, SlimfastError, "train has no batches"),
        ({"train": iter(batches())}, TypeError, "train is an iterator"),
        ({"train": 3}, TypeError, "train must be an iterable"),
        ({"train": [(1, 2, 3)]}, TypeError, "got a tuple of 3"),
        ({"train": [(1, 2)]}, TypeError, "inputs must be a tensor"),
        ({"train": [(torch.zeros(2, 4), [0, 1])]}, TypeError, "targets must be a tensor, got list"),
        ({"train": [3]}, TypeError, "got a int"),
        ({"train": [torch.zeros(2, 4)]}, ValueError, "hard=0.1 needs targets"),
        (
            {"train": [(torch.zeros(2, 5), torch.zeros(2).long())]},
            SlimfastError,
            r"teacher fails on .*\(2, 5\)",
        ),
        ({"train": [(torch.zeros(2, 4), torch.tensor([0, 3]))]}, SlimfastError, "target 3 .* 3 classes"),
        ({"train": batches(), "steps_per_epoch": 7}, SlimfastError, "6 batches in epoch 1, expected 7"),
        (
            {"student": network(classes=4)},
            SlimfastError,
            r"student's output is \(8, 4\), the teacher's \(8, 3\)",
        ),
        ({"evaluate": [x for x, _ in batches()]}, SlimfastError, "accuracy: a batch has no targets"),
        ({"evaluate": [(batches()[0][0], torch.zeros(3).long())]}, SlimfastError, r"targets are \(3,\)"),
        ({"evaluate": []}, SlimfastError, "evaluate has no targets"),
        ({"evaluate": iter(batches())}, TypeError, "evaluate is an iterator"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"lr": -1.0}, ValueError, "lr must be positive, got -1.0"),
        ({"optimizer": "lion"}, ValueError, "'sgd' or 'adamw', got 'lion'"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"warmup": 1.0}, ValueError, "warmup"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
        ({"restore": "first"}, ValueError, "'best' or 'last', got 'first'"),
        ({"mixed_precision": "fp7"}, ValueError, "mixed_precision"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    teacher: nn.Module, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"student": network(), "train": batches(), "epochs": 1} | change
    student = arguments.pop("student")
    with pytest.raises(error, match=message) as caught:
        distill(student, teacher=teacher, **arguments)
    assert "\n" not in str(caught.value) or change.get("mixed_precision")
    if "steps_per_epoch" not in change and "classes" not in message:
        assert bits(student) == bits(network(classes=student[-1].out_features))


def test_wrong_networks(teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match="the student is the teacher"):
        distill(teacher, teacher=teacher, train=batches())
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        distill(frozen, teacher=teacher, train=batches())
    broken = network(16)
    nn.init.constant_(broken[0].weight, float("inf"))
    with pytest.raises(SlimfastError, match="teacher's output is not finite"):
        distill(network(), teacher=broken, train=batches())


def test_a_folder_that_cannot_be_written(teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SlimfastError, match="cannot make the folder"):
        distill(network(), teacher=teacher, train=batches(), checkpoint=tmp_path / "file" / "folder")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*samples(), strict=True))


def test_a_stream_needs_steps_per_epoch(teacher: nn.Module) -> None:
    stream = DataLoader(Stream(), batch_size=8)
    with pytest.raises(TypeError, match="pass steps_per_epoch"):
        distill(network(), teacher=teacher, train=stream, epochs=1)
    history = distill(network(), teacher=teacher, train=stream, epochs=2, steps_per_epoch=4)
    assert len(history.epochs) == 2


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode, None])
def test_a_student_without_gradients_is_named(block: Any, teacher: nn.Module) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if block is None:
                return self.inner(x).detach()
            with block():
                return self.inner(x)

    with pytest.raises(SlimfastError, match="the loss has no gradient; does the student's forward"):
        distill(Fixed(), teacher=teacher, train=batches(), epochs=1)


def test_networks_that_are_none_or_have_no_data(teacher: nn.Module) -> None:
    anything: Any = "resnet18"
    for student, wide in ((anything, teacher), (network(), anything)):
        with pytest.raises(TypeError, match=r"expected the (student|teacher) to be a module, got str"):
            distill(student, teacher=wide, train=batches(), epochs=1)
    for student, wide in ((network().to("meta"), teacher), (network(), network().to("meta"))):
        with pytest.raises(SlimfastError, match="is on the meta device and has no data"):
            distill(student, teacher=wide, train=batches(), epochs=1)


def test_a_batch_without_samples_is_named(teacher: nn.Module) -> None:
    x, y = samples(8)
    with pytest.raises(SlimfastError, match="train: batch 2 of epoch 1 has no samples"):
        distill(network(seed=1), teacher=teacher, train=[(x, y), (x[:0], y[:0])], epochs=1)


def test_scores_that_are_no_numbers(teacher: nn.Module) -> None:
    with pytest.raises(TypeError, match="expected a function that returns a number, got NoneType"):
        distill(network(), teacher=teacher, train=batches(), epochs=1, evaluate=lambda model: None)
    scores = iter([float("nan"), 0.2, 0.5, float("nan")])
    with pytest.warns(UserWarning, match="evaluate returned nan: this epoch cannot be the best one"):
        found = distill(
            network(), teacher=teacher, train=batches(), epochs=4, evaluate=lambda model: next(scores)
        )
    # A first epoch without a score is not the best one for ever.
    assert found.best is not None
    assert found.best.epoch == 3
