"""Distillation of sharded students: two processes end where one does, and say what they cannot train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.sharded_training import COMMON, LAUNCH
from torch import nn

import slimfast
from slimfast.distillation.resume import FILE
from slimfast.distillation.sharding import check_strategy
from slimfast.errors import SlimfastError


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of two processes that did all of it, and what each of them found."""
    folder = tmp_path_factory.mktemp("fsdp")
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(slimfast.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def common() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(COMMON, found)
    return found


@pytest.mark.parametrize("way", ["fully_shard", "adamw", "accelerate"])
def test_two_processes_with_parts_end_where_one_with_all_does(
    ran: tuple[Path, list[dict[str, Any]]], way: str
) -> None:
    folder, found = ran
    here = common()
    student: nn.Module = here["thin"]()
    settings = dict(here["SETTINGS"])
    if way == "adamw":
        settings |= {"optimizer": "adamw", "lr": 0.01, "restore": "last", "ema": None}
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    history = slimfast.distill(
        student,
        teacher=here["wide"](7),
        # Two processes with batches of 6 each see 12 samples a step.
        train=list(zip(here["X"].split(12), here["Y"].split(12), strict=True)),
        evaluate=here["EVALUATE"],
        **settings,
    )
    key = f"by_{way}"
    assert found[0][key] == found[1][key]
    losses, scores = zip(*found[0][key], strict=True)
    assert losses == pytest.approx([record.loss for record in history.epochs], rel=1e-5)
    assert scores == pytest.approx([record.score for record in history.epochs])
    loaded = slimfast.load(folder / f"{way}.safetensors", here["wide"](9))
    torch.testing.assert_close(loaded.state_dict(), student.state_dict())
    assert all((tensor != before[name]).any() for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_sharded_run_goes_on_bit_for_bit(ran: tuple[Path, list[dict[str, Any]]], optimizer: str) -> None:
    folder, _ = ran
    whole, again = (load_file(folder / f"{optimizer}-{which}.safetensors") for which in ("whole", "again"))
    assert {n: t.numpy().tobytes() for n, t in whole.items()} == {
        n: t.numpy().tobytes() for n, t in again.items()
    }
    # The file holds whole tensors: another number of processes could read it.
    state = torch.load(folder / optimizer / FILE, weights_only=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in common()["thin"]().state_dict().items()}
    for held in (state["student"], state["best"]["student"], state["average"][0]):
        assert {name: tuple(tensor.shape) for name, tensor in held.items()} == shapes


def test_what_is_not_supported_is_said_by_every_process(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = ran
    assert found[0]["refused"] == found[1]["refused"]
    reasons = {
        "in_part": "the student's 1.weight: expected it sharded like others, got it whole on every process",
        "by_tensor": "the student is sharded, but not by torch.distributed.fsdp.fully_shard",
        "by_tensor_and_data": "expected it sharded by FSDP alone, got",
        "alone": "expected it shared by all 2 processes, got 1",
        "first_fsdp": "expected a student sharded by fully_shard (FSDP 2), got FSDP 1",
        "first_fsdp_of_accelerate": "expected FSDP 2 (fsdp_version=2), got accelerate's FSDP 1",
    }
    assert found[0]["refused"].keys() == reasons.keys()
    for case, reason in reasons.items():
        assert found[0]["refused"][case].startswith("distill: ")
        assert reason in found[0]["refused"][case]


def test_another_way_to_spread_a_training_is_refused() -> None:
    from accelerate.utils import DistributedType

    with pytest.raises(SlimfastError, match="distill: expected DDP or FSDP 2, got accelerate's DEEPSPEED"):
        check_strategy(nn.Linear(1, 1), SimpleNamespace(distributed_type=DistributedType.DEEPSPEED))
