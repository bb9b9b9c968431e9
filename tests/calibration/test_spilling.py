"""What does not fit in memory: put away and brought back bit for bit, and a full disk in one line."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch
from torch import Tensor

import slimfast
from slimfast.calibration import lockstep
from slimfast.calibration.sleeping import Activations
from slimfast.calibration.spilling import Store


@pytest.mark.parametrize("memory", [0, 9000, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_they_were(memory: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1000,), (7, 300, 2), (), (0, 3), (700, 900)]
    tensors = [torch.randint(2, shape, generator=generator).to(dtype) for shape in shapes]
    tensors += [tensors[1].movedim(0, -1), tensors[4].T]
    with Store("test", memory) as store:
        held = [store.put(tensor.clone(memory_format=torch.preserve_format)) for tensor in tensors]
        held[0].users += 1
        assert store.held <= memory
        for tensor, one in zip(tensors, held, strict=True):
            back = one.take()
            assert torch.equal(back, tensor)
            assert back.stride() == tensor.stride() or tensor.numel() < 2
        assert torch.equal(held[0].take(), tensors[0])
        assert store.held == 0


def test_blocks_are_used_again() -> None:
    with Store("test", 0) as store:
        for _ in range(5):
            one, other = (store.put(torch.ones(1 << 20)) for _ in range(2))
            one.take()
            other.drop()
        assert store._blocks == 8


def test_a_sleeping_forward_holds_nothing_and_wakes_up_the_same() -> None:
    shared = torch.randn(100)
    with Store("test", 1000) as store, Activations() as made:
        a = torch.randn(300)
        view, small, weight = a.view(10, 30)[::3].T, torch.ones(2), shared.view(10, 10)
        gone = torch.zeros(5000)
        expected = (a.clone(), small.clone())
        del gone
        made.sleep(store)
        # Nothing of what the network holds is touched, and what fits stays.
        assert weight.untyped_storage().nbytes() == 400
        assert store.held <= 1000
        assert a.untyped_storage().nbytes() in (0, 1200)
        made.wake_up(store)
        assert store.held == 0
        assert torch.equal(a, expected[0])
        assert torch.equal(view, expected[0].view(10, 30)[::3].T)
        assert torch.equal(small, expected[1])


def test_what_a_forward_is_given_is_never_put_away() -> None:
    samples = torch.randn(400)
    with Store("test", 0) as store, Activations() as made:
        part = samples[100:200].detach()
        own = part * 2
        samples.add_(1)
        assert made.bytes_held() == 400
        made.sleep(store)
        assert own.untyped_storage().nbytes() == 0
        assert part.untyped_storage().nbytes() == 1600
        made.wake_up(store)


def test_memory_that_another_forward_reads_is_brought_back_for_it() -> None:
    woken: list[int] = []
    with Store("test", 0) as store:
        first = Activations()
        with first:
            table = torch.arange(50.0) + 0
        first.sleep(store)
        assert table.untyped_storage().nbytes() == 0

        def wake(address: int) -> None:
            woken.append(address)
            assert first.bring_back(address, store)

        with Activations(wake):
            assert torch.equal(table + 1, torch.arange(1.0, 51.0))
        assert len(woken) == 1


class FullDisk:
    """A file on a disk that has no space."""

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, place: int) -> None:
        pass

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()
    batches = list(torch.randn(64, 6).split(16))
    graph = slimfast.trace_channels(model, batches[0])
    calibration = slimfast.calibrate(model, graph, batches)
    plan = slimfast.plan(model, batches[0], macs=0.5, calibration=calibration)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def thin(memory: int) -> dict[str, Tensor]:
        found = slimfast.prune_channels(
            model, plan, repair="activations", calibration=calibration, memory=memory
        )
        return found.state_dict()

    expected = thin(1 << 30)
    with monkeypatch.context() as patch:
        patch.setattr("slimfast.calibration.spilling.tempfile.TemporaryFile", lambda **_: FullDisk())
        with pytest.raises(slimfast.SlimfastError, match=r"repair: .*No space.*nothing was changed.*TMPDIR"):
            thin(0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    found = thin(0)
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("memory", [-1, 1.5, True])
def test_memory_is_a_number_of_bytes(memory: Any) -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)), torch.randn(4, 3)
    graph = slimfast.trace_channels(model, x)
    with pytest.raises(ValueError, match=f"calibrate: expected memory in bytes, 0 or more, got {memory}"):
        slimfast.calibrate(model, graph, [x], memory=memory)
    plan = slimfast.plan(model, x, explained_variance=0.9)
    with pytest.raises(ValueError, match=f"prune: expected memory in bytes, 0 or more, got {memory}"):
        slimfast.prune_channels(model, plan, memory=memory)


def test_free_memory_is_looked_for_when_enough_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(lockstep, "give_back", asked.append)
    with Store("test", 800) as store:
        tidy = lockstep._tidier(store)
        store.held = 300
        for made in (60, 40, 1, 99, 2):
            tidy(made)
        # What is free may stay where the memory allows it, and an eighth of that at least.
        assert asked == [500, 500]
        store.held = 800
        tidy(101)
    assert asked == [500, 500, 100]
