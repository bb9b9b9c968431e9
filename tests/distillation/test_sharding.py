"""Distillation of sharded students: two processes end where one does, go on where they stopped, and say what
they cannot train."""

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
from torch import nn

import slimfast
from slimfast.distillation.resume import FILE
from slimfast.distillation.sharding import check_strategy
from slimfast.errors import SlimfastError

# What the processes and the test have in common: networks without batch statistics, which each process
# would take over its own batches, and with sizes that two do not divide.
COMMON = """
import torch
from torch import nn
import slimfast
from slimfast.distillation import DistillationLoss, Hint

X = torch.randn(72, 5, generator=torch.Generator().manual_seed(3))
Y = X[:, :3].argmax(1)


def wide(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 3)
    )


def thin(seed=0):
    model = wide(seed)
    return slimfast.prune_channels(model, slimfast.plan(model, X[:1], params=0.6))


SETTINGS = dict(epochs=3, loss=DistillationLoss(), lr=0.05, max_grad_norm=0.5, ema=0.6)
# Their loss is relative to the teacher's features on a process's own batch.
HINTS = DistillationLoss(hints=(Hint("5", (0, 1, 2)),))
# Five batches: of the last round one process has none.
EVALUATE = list(zip(X[:60].split(12), Y[:60].split(12)))
"""

LAUNCH = (
    COMMON
    + """
import json, os, sys, traceback
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from slimfast.distillation import distill
from slimfast.errors import SlimfastError

BATCHES = list(zip(X.split(6), Y.split(6)))


def sharded(model, mesh=None):
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh or MESH)
    return fully_shard(model, mesh=mesh or MESH)


def plugin(version=2):
    # accelerate starts FSDP on accelerators only; the rest of it does not ask where it runs.
    own = Accelerator()
    shared = own.state._shared_state
    shared["distributed_type"] = DistributedType.FSDP
    shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=version, cpu_ram_efficient_loading=False
    )
    return own


def stop_at(step):
    def progress(done, total):
        if done >= step:
            raise slimfast.Cancelled

    return progress


def train(name, student, **changes):
    arguments = dict(teacher=wide(7), train=BATCHES, evaluate=EVALUATE, **SETTINGS) | changes
    history = distill(student, **arguments)
    slimfast.save(student, f"{name}.safetensors")
    return [[record.loss, record.score] for record in history.epochs]


def by_fully_shard():
    student = sharded(thin())
    # A forward without a backward leaves the parameters of the root whole.
    with torch.no_grad():
        student(X[:6])
    return train("fully_shard", student, teacher=sharded(wide(7)))


def by_adamw():
    return train("adamw", sharded(thin()), optimizer="adamw", lr=0.01, restore="last", ema=None)


def by_accelerate():
    own = plugin()
    try:
        student = thin()
        found = train("accelerate", student, accelerator=own)
        assert all(type(p).__name__ == "DTensor" for p in student.parameters())
        return found
    finally:
        AcceleratorState._reset_state()


def resumed():
    for optimizer, restore in (("sgd", "last"), ("adamw", "best")):
        def scores(*left):
            # The first epoch is the best one, which the second process has to take from the file.
            left = iter(left)
            return lambda model: next(left)

        how = dict(optimizer=optimizer, restore=restore, loss=HINTS, train=BATCHES * 4)
        train(f"{optimizer}-whole", sharded(thin()), evaluate=scores(3, 2, 1), **how)
        how["checkpoint"] = optimizer
        try:
            # Of 24 steps an epoch, after the 16th of the second.
            train("none", sharded(thin()), evaluate=scores(3), progress=stop_at(30), **how)
        except (slimfast.Cancelled, KeyboardInterrupt):
            pass
        else:
            raise AssertionError("not stopped")
        train(f"{optimizer}-again", sharded(thin(seed=5)), evaluate=scores(2, 1), resume=True, **how)


def refused():
    def in_part():
        student = thin()
        fully_shard(student[0], mesh=MESH)
        train("none", student)

    def by_tensor():
        train("none", parallelize_module(thin(), MESH, {"0": ColwiseParallel()}))

    def by_tensor_and_data():
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
        student = parallelize_module(thin(), mesh["tensor"], {"0": ColwiseParallel()})
        train("none", fully_shard(student, mesh=mesh["data"]))

    def alone():
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("other", "own"))
        train("none", sharded(thin(), mesh["own"]))

    def first_fsdp():
        train("none", nn.Sequential(FullyShardedDataParallel(thin(), device_id=torch.device("cpu"))))

    def first_fsdp_of_accelerate():
        train("none", thin(), accelerator=plugin(version=1))

    found = {}
    for case in (in_part, by_tensor, by_tensor_and_data, alone, first_fsdp, first_fsdp_of_accelerate):
        try:
            case()
        except SlimfastError as error:
            found[case.__name__] = str(error)
        finally:
            AcceleratorState._reset_state()
    return found


def work(rank):
    global MESH
    dist.init_process_group("gloo", store=dist.FileStore("store", 2), rank=rank, world_size=2)
    MESH = init_device_mesh("cpu", (2,))
    found = {case.__name__: case() for case in (by_fully_shard, by_adamw, by_accelerate, resumed, refused)}
    with open(f"{rank}.json", "w") as stream:
        json.dump(found, stream)
    dist.destroy_process_group()


children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        os.environ |= dict(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true",
            MASTER_ADDR="localhost", MASTER_PORT="0",
        )
        status = 1
        try:
            work(rank)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
)


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
