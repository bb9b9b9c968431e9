"""Distillation end to end on tiny networks: it learns, resumes bit for bit, and says early what is wrong."""

import copy
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from slimfast.distillation import DistillationLoss, Hint, accuracy, distill
from slimfast.distillation.recipe import Recipe
from slimfast.distillation.resume import FILE, postponed_interrupt
from slimfast.errors import SlimfastError

CLASSES = 3


def network(hidden: int = 8, *, seed: int = 0, classes: int = CLASSES) -> nn.Module:
    """A network with what is hard to resume: batch-norm statistics and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, classes)
    )


def samples(n: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clusters of points, and which one each is from."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(n) % CLASSES
    return torch.randn(n, 4, generator=generator) + 3 * torch.eye(4)[targets], targets


def loader(n: int = 48) -> DataLoader:
    return DataLoader(TensorDataset(*samples(n)), batch_size=8, shuffle=True)


def batches(n: int = 48) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = samples(n)
    return list(zip(x.split(8), y.split(8), strict=True))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A teacher that knows the clusters, left in train mode on purpose."""
    model = network(16, seed=7)
    distill(
        model,
        teacher=network(16, seed=8),
        train=batches(),
        loss=DistillationLoss(soft=0.0, hard=1.0),
        epochs=20,
    )
    assert accuracy(model, batches()) > 0.95
    return model.train()


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


def test_the_best_epoch_comes_back(teacher: nn.Module) -> None:
    scores = iter([0.2, 0.9, float("nan"), 0.5])
    seen: list[dict[str, bytes]] = []

    def evaluate(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        seen.append(bits(model))
        return next(scores)

    student = network()
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


class Interrupting:
    """Batches that press Ctrl-C while batch ``at`` (counted over all epochs) is fetched."""

    def __init__(self, at: int, inner: Any) -> None:
        self.at, self.inner, self.count = at, inner, 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Any:
        for batch in self.inner:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def noisy(output: torch.Tensor, expected: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """A loss that draws random numbers of its own."""
    return DistillationLoss()(output, expected, targets) * (0.5 + torch.rand(()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [1, 8, 12])
def test_a_run_stopped_by_ctrl_c_goes_on_bit_for_bit(
    teacher: nn.Module, tmp_path: Path, optimizer: str, at: int
) -> None:
    # 6 batches an epoch: stopped at the first step, inside the second epoch, and at its very end.
    settings: dict[str, Any] = {
        "teacher": teacher, "evaluate": batches(), "epochs": 3, "optimizer": optimizer, "lr": 0.01,
        "loss": noisy,
    }  # fmt: skip
    whole = network()
    expected = distill(whole, train=loader(), **settings)

    student = network()
    with pytest.raises(KeyboardInterrupt):
        distill(student, train=Interrupting(at, loader()), checkpoint=tmp_path, **settings)
    again = network(seed=99)
    torch.manual_seed(1234)
    resumed = distill(again, train=loader(), checkpoint=tmp_path, resume=True, **settings)
    assert bits(again) == bits(whole)
    assert [(r.epoch, r.loss, r.lr, r.score) for r in resumed.epochs] == [
        (r.epoch, r.loss, r.lr, r.score) for r in expected.epochs
    ]
    # A finished run is only read: the same weights again, without a step.
    once_more = network(seed=100)
    assert distill(once_more, train=loader(), checkpoint=tmp_path, resume=True, **settings) == resumed
    assert bits(once_more) == bits(whole)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]


def test_a_run_that_died_goes_on_from_its_last_epoch(teacher: nn.Module, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": teacher, "train": loader(), "epochs": 3, "checkpoint": tmp_path}
    whole = network()
    distill(whole, **(settings | {"checkpoint": None}))

    def die(record: Any) -> None:
        if record.epoch == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        distill(network(), callback=die, **settings)
    again = network(seed=99)
    distill(again, resume=True, **settings)
    assert bits(again) == bits(whole)


def test_a_second_ctrl_c_stops_at_once() -> None:
    heard: list[int] = []
    # A process started in the background may have been told to ignore Ctrl-C.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with postponed_interrupt(announce=lambda: heard.append(1)) as stopping:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping()
            assert heard == [1]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_distill_off_the_main_thread(teacher: nn.Module, tmp_path: Path) -> None:
    done: list[Any] = []
    thread = threading.Thread(
        target=lambda: done.append(
            distill(network(), teacher=teacher, train=batches(), epochs=1, checkpoint=tmp_path)
        )
    )
    thread.start()
    thread.join()
    assert len(done[0].epochs) == 1


def test_a_checkpoint_that_is_not_this_run(teacher: nn.Module, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": teacher, "train": batches(), "checkpoint": tmp_path, "epochs": 1}
    distill(network(), **settings)
    with pytest.raises(SlimfastError, match=r"holds a training \(1 epochs done\)"):
        distill(network(), **settings)
    with pytest.raises(
        SlimfastError, match=r"other settings: epochs 1 there, 2 here, lr 0.05 there, 0.1 here"
    ):
        distill(network(), resume=True, **(settings | {"epochs": 2, "lr": 0.1}))
    other, before = network(9), bits(network(9))
    with pytest.raises(SlimfastError, match=r"another student: 0.weight \(8, 4\), here \(9, 4\)"):
        distill(other, resume=True, **settings)
    assert bits(other) == before
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    with pytest.raises(SlimfastError, match="damaged or not a training checkpoint"):
        distill(network(), resume=True, **settings)


class Malice:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_strangers_checkpoint_is_not_unpickled(teacher: nn.Module, tmp_path: Path) -> None:
    torch.save(Malice(tmp_path / "owned"), tmp_path / FILE)
    with pytest.raises(SlimfastError, match="not a training checkpoint"):
        distill(network(), teacher=teacher, train=batches(), checkpoint=tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()
    for content in ({"schema": 1}, [1, 2]):
        torch.save(content, tmp_path / FILE)
        with pytest.raises(SlimfastError, match="not a training checkpoint of slimfast"):
            distill(network(), teacher=teacher, train=batches(), checkpoint=tmp_path, resume=True)


def test_a_checkpoint_of_another_schema(teacher: nn.Module, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": teacher, "train": batches(), "checkpoint": tmp_path, "epochs": 1}
    distill(network(), **settings)
    state = torch.load(tmp_path / FILE, weights_only=True)
    torch.save(state | {"schema": 99}, tmp_path / FILE)
    with pytest.raises(SlimfastError, match="has schema 99"):
        distill(network(), resume=True, **settings)


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
