"""Rounds that were stopped go on from their folder."""

from __future__ import annotations

import pytest
import torch
from support.gradual_cases import EXAMPLE, Net, batches, network, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slimfast
from slimfast.errors import SlimfastError


class _Stop(Exception):
    pass


def _run(folder, stop_at=None, seed=3):
    """Three rounds with trainings, stopped in the midst of one; the last network."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def also(network):
        scheduler.step()
        average.update_parameters(network)

    train(model, optimizer, also=[also])
    run = slimfast.rounds(
        model,
        EXAMPLE,
        macs=0.3,
        rounds=3,
        calibration=batches(),
        optimizer=optimizer,
        scheduler=scheduler,
        averages=[average],
        folder=folder,
    )
    numbers = []
    for step in run:
        numbers.append(step.number)
        train(step.model, optimizer, seed=step.number, also=[also])
        if step.number == stop_at:
            raise _Stop
    return run, numbers, optimizer, average


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_network(tmp_path, stop_at):
    whole, numbers, optimizer, average = _run(tmp_path / "whole")
    assert numbers == [1, 2, 3]
    with pytest.raises(_Stop):
        _run(tmp_path / "stopped", stop_at=stop_at)
    again, numbers, other, other_average = _run(tmp_path / "stopped")
    assert numbers == list(range(stop_at, 4))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, other_average.state_dict()[name])
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(map(torch.equal, moments, [state["exp_avg"] for state in other.state.values()]))
    assert [plan.to_json() for plan in whole.plans] == [plan.to_json() for plan in again.plans]


def test_a_run_that_is_done_has_its_trained_network(tmp_path):
    run, *_ = _run(tmp_path)
    again, numbers, *_ = _run(tmp_path)
    assert numbers == []
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plan-1.json", "plan-2.json", "plan-3.json",
        "round-3-trained.pt", "round-3-trained.safetensors", "rounds.json",
    ]  # fmt: skip


def test_a_folder_of_another_run_is_refused(tmp_path):
    next(slimfast.rounds(network(), EXAMPLE, macs=0.5, rounds=2, folder=tmp_path))
    with pytest.raises(SlimfastError, match="another request"):
        slimfast.rounds(network(), EXAMPLE, macs=0.4, rounds=2, folder=tmp_path)
    torch.manual_seed(9)
    with pytest.raises(SlimfastError, match="another network"):
        slimfast.rounds(Net(), EXAMPLE, macs=0.5, rounds=2, folder=tmp_path)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SlimfastError, match="has no optimizer"):
        slimfast.rounds(model, EXAMPLE, macs=0.5, rounds=2, folder=tmp_path, optimizer=optimizer)


@pytest.mark.parametrize("damage", ["index", "training", "name"])
def test_a_damaged_folder_is_refused(tmp_path, damage):
    next(slimfast.rounds(network(), EXAMPLE, macs=0.5, rounds=2, folder=tmp_path))
    index = tmp_path / "rounds.json"
    if damage == "index":
        index.write_text(index.read_text()[:40])
    elif damage == "training":
        (tmp_path / "round-1-cut.pt").write_bytes(b"no")
    else:
        index.write_text(index.read_text().replace('"round-1-cut.pt"', '"../round-1-cut.pt"'))
    with pytest.raises(SlimfastError, match=r"rounds\.json|round-1-cut\.pt"):
        slimfast.rounds(network(), EXAMPLE, macs=0.5, rounds=2, folder=tmp_path)
