"""Two processes that train sharded students in every way, as a program."""

from __future__ import annotations

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
