"""Distillation that was stopped goes on bit for bit, and only from a checkpoint of the same training."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainer_cases import batches, bits, loader, network
from torch import nn

from slimfast.distillation import DistillationLoss, distill
from slimfast.distillation.resume import FILE, postponed_interrupt
from slimfast.errors import SlimfastError


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
    with pytest.raises(SlimfastError, match=r"damaged or not a training checkpoint \(\w+Error: .+\)$"):
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
