"""Distillation end to end on tiny networks: it learns, and every setting does what it says."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.trainer_cases import batches, bits, loader, network, samples
from torch import nn

from slimfast.distillation import DistillationLoss, Hint, accuracy, distill
from slimfast.distillation.resume import FILE
from slimfast.errors import SlimfastError


def test_the_student_learns_from_soft_targets_alone(teacher: nn.Module) -> None:
    student, inputs = network(), [x for x, _ in batches()]
    before = accuracy(student, batches())
    history = distill(
        student, teacher=teacher, train=inputs, evaluate=batches(), loss=DistillationLoss(hard=0.0), epochs=20
    )
    assert before < 0.7
    assert accuracy(student, batches()) > 0.9
    assert history.epochs[-1].loss < history.epochs[0].loss / 2
    assert [record.epoch for record in history.epochs] == list(range(1, 21))
    assert history.best is not None
    assert (
        history.best.score == max(record.score for record in history.epochs) == accuracy(student, batches())
    )


def test_nothing_but_the_student_changes(teacher: nn.Module) -> None:
    student = network().eval()
    student[0].train()
    modes = [module.training for module in student.modules()]
    teacher_bits, teacher_modes = bits(teacher), [module.training for module in teacher.modules()]
    attributes = set(vars(student))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    distill(student, teacher=teacher, train=loader(), epochs=1, mixed_precision="bf16")
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert [module.training for module in student.modules()] == modes
    assert [module.training for module in teacher.modules()] == teacher_modes
    assert bits(teacher) == teacher_bits
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(vars(student)) == attributes
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_networks_that_write_into_their_inputs_see_the_same_batch_and_leave_it_alone() -> None:
    """Otherwise the student would see the teacher's doubled batch, and every epoch another one."""

    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.seen = nn.Linear(2, 2), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.clone())
            logits: torch.Tensor = self.linear(x.mul_(2))
            return logits

    student, teacher, batch = Doubling(), Doubling(), torch.ones(1, 2)
    evaluated = [(batch, torch.tensor([0]))]
    distill(
        student, teacher=teacher, train=[batch], evaluate=evaluated, loss=DistillationLoss(hard=0.0), epochs=2
    )
    assert all(torch.equal(seen, torch.ones(1, 2)) for seen in (batch, *student.seen, *teacher.seen))


def test_the_best_epoch_comes_back(teacher: nn.Module) -> None:
    scores = iter([0.2, 0.9, float("nan"), 0.5])
    seen: list[dict[str, bytes]] = []

    def evaluate(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        seen.append(bits(model))
        return next(scores)

    student = network()
    with pytest.warns(UserWarning, match="evaluate returned nan"):
        history = distill(student, teacher=teacher, train=loader(), evaluate=evaluate, epochs=4)
    assert history.best == history.epochs[1]
    assert bits(student) == seen[1]
    scores = iter([0.9, 0.2])
    student = network()
    distill(student, teacher=teacher, train=loader(), evaluate=evaluate, epochs=2, restore="last")
    assert bits(student) == seen[-1]


def test_dict_and_tuple_batches_are_the_same_training(teacher: nn.Module) -> None:
    class ByName(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, points: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(points * scale)}

    one = torch.ones(())
    ways: list[Any] = [
        batches(),
        [((x, one), y) for x, y in batches()],
        [({"points": x, "scale": one}, y) for x, y in batches()],
        [{"points": x, "scale": one, "labels": y} for x, y in batches()],
    ]
    results = []
    for index, train in enumerate(ways):
        student, wrap = network(), (lambda model: model) if index == 0 else ByName
        distill(wrap(student), teacher=wrap(teacher), train=train, epochs=1)
        results.append(bits(student))
    assert all(result == results[0] for result in results)


def test_hints_and_own_losses_are_trained_on(teacher: nn.Module) -> None:
    student = network(16)
    loss = DistillationLoss(soft=0.0, hard=0.0, hints=(Hint("0", tuple(range(16))),))
    history = distill(student, teacher=teacher, train=batches(), loss=loss, epochs=15, lr=0.2)
    assert history.epochs[-1].loss < 0.2 * history.epochs[0].loss

    def own(output: torch.Tensor, expected: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        return (output - expected).square().mean()

    history = distill(student, teacher=teacher, train=batches(), loss=own, epochs=10)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss


def test_the_bar_is_shown_when_asked(teacher: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    distill(network(), teacher=teacher, train=batches(), evaluate=batches(), epochs=2)
    assert capfd.readouterr() == ("", "")
    distill(network(), teacher=teacher, train=batches(), evaluate=batches(), epochs=2, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "score 0." in err


def test_ones_own_accelerator_decides_the_precision(teacher: nn.Module) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    try:
        own = Accelerator(mixed_precision="bf16")
        with pytest.raises(ValueError, match="the accelerator has 'bf16'"):
            distill(network(), teacher=teacher, train=batches(), mixed_precision="no", accelerator=own)
        student = network()
        distill(student, teacher=teacher, train=batches(), epochs=1, accelerator=own)
    finally:
        AcceleratorState._reset_state()
    other = network()
    distill(other, teacher=teacher, train=batches(), epochs=1, mixed_precision="bf16")
    wide = network()
    distill(wide, teacher=teacher, train=batches(), epochs=1)
    assert bits(student) == bits(other)
    assert bits(student) != bits(wide)


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    model = nn.Identity()
    assert accuracy(model, [(logits, torch.tensor([0, 1, 1, -100]))]) == pytest.approx(2 / 3)
    assert accuracy(model, [(logits.T[None], torch.tensor([[0, 1, 0, 1]]))], class_dim=1) == 1.0
    assert model.training
    with pytest.raises(SlimfastError, match="no targets"):
        accuracy(model, [])


TWO_PROCESSES = """
import os, sys
import torch
import torch.distributed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from slimfast.distillation import distill

# They meet in a file: a port could be taken by another process meanwhile.
torch.distributed.init_process_group(
    "gloo", init_method="file://" + os.environ["STORE"], rank=int(os.environ["RANK"]), world_size=2
)
x, y = torch.load("samples.pt")
for kind in ("loader", "list"):
    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    # Nine batches: the list's last one has no partner and is left out.
    train = list(zip(x.split(4), y.split(4)))[: 9]
    if kind == "loader":
        train = DataLoader(TensorDataset(x[:32], y[:32]), batch_size=4)
    evaluate = list(zip(x.split(4), y.split(4)))
    history = distill(student, teacher=teacher, train=train, evaluate=evaluate, epochs=2, checkpoint=kind)
    print(history.epochs[-1].loss, history.epochs[-1].score)
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    x, y = samples(44)
    torch.save((x, y), tmp_path / "samples.pt")
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "STORE": str(tmp_path / "store"),
        # accelerate asks for an address and does not use it.
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES],
            cwd=tmp_path,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results[0][1] + results[1][1]

    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    train = list(zip(x[:32].split(8), y[:32].split(8), strict=True))
    history = distill(student, teacher=teacher, train=train, evaluate=[(x, y)], epochs=2)
    for out, _ in results:
        for line in out.splitlines():
            loss, score = map(float, line.split())
            assert loss == pytest.approx(history.epochs[-1].loss, rel=1e-5)
            assert score == pytest.approx(history.epochs[-1].score)
    for kind in ("loader", "list"):
        state = torch.load(tmp_path / kind / FILE, weights_only=True)
        torch.testing.assert_close(state["student"], dict(student.state_dict()))
