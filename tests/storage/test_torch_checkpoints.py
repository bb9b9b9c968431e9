"""Folders of torch.distributed.checkpoint: what FSDP saved is planned and pruned, and what it can load comes
out; nothing in them is run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

import slimfast
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_shards import export_dcp
from slimfast.errors import SlimfastError
from slimfast.storage.weights import open_weights, read_tensors

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16) / 3,
    "steps": torch.tensor(7),
    "none": torch.zeros(0, 2),
}


def write(folder: Path, state: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    return folder


def edit(folder: Path, change: Any) -> None:
    """Change the index in place; ``change(metadata)``."""
    index: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def test_tensors_come_back_with_their_types(tmp_path: Path) -> None:
    found = read_tensors(write(tmp_path / "x", {**TENSORS, "n": 3}))
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    infos = open_weights(tmp_path / "x").infos
    assert infos["b"].dtype == torch.bfloat16
    assert infos["steps"].dtype is None


def test_of_several_state_dicts_the_model_s_is_meant(tmp_path: Path) -> None:
    state = {"optim": {"state": {"module.a": torch.zeros(2)}}, "model": {"module.a": torch.ones(3)}}
    assert read_tensors(write(tmp_path / "x", state))["a"].tolist() == [1.0, 1.0, 1.0]


FSDP = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import slimfast
from slimfast.errors import SlimfastError
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_shards import export_dcp, load_checkpoint

folder = sys.argv[1]
X = torch.ones(2, 6)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))


def sharded(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def save():
    model = sharded(net())
    dcp.save({"model": model.state_dict()}, checkpoint_id=f"{folder}/wide")
    plan = slimfast.plan(net(), X, params=0.5)
    part, module = "expected whole tensors, got a part of 0.weight", "the model is sharded by FSDP"
    for use, said in (
        (lambda: slimfast.measure_spectra(model.state_dict()), part),
        (lambda: slimfast.measure_spectra(model), module),
        (lambda: plan_checkpoint(model.state_dict(), net(), X, params=0.5), part),
        (lambda: slimfast.prune_channels(model, plan), module),
    ):
        try:
            use()
        except SlimfastError as error:
            assert said in str(error), error
        else:
            raise AssertionError("a part was used")
    # Gathered on the first process, it is a state dict like any other.
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        spectra = slimfast.measure_spectra(whole)
        for name, spectrum in slimfast.measure_spectra(net()).items():
            assert (spectra[name].eigenvalues == spectrum.eigenvalues).all(), name
        with torch.device("meta"):
            empty = net()
        found = plan_checkpoint(whole, empty, X, params=0.5)
        assert found.to_json() == plan.to_json()
        gathered = net()
        gathered.load_state_dict(whole)
        thin = slimfast.prune_channels(gathered, found).state_dict()
        expected = slimfast.prune_channels(net(), plan).state_dict()
        assert thin.keys() == expected.keys()
        assert all(torch.equal(thin[name], expected[name]) for name in expected)


def prune():
    with torch.device("meta"):
        empty = net()
    plan = plan_checkpoint(f"{folder}/wide", empty, X, params=0.5)
    assert plan.to_json() == slimfast.plan(net(), X, params=0.5).to_json()
    prune_checkpoint(f"{folder}/wide", plan, f"{folder}/thin", model=empty)
    export_dcp(f"{folder}/thin", f"{folder}/dcp")


def load():
    expected = slimfast.prune_channels(net(), slimfast.plan(net(), X, params=0.5)).state_dict()
    model = load_checkpoint(f"{folder}/thin", net())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.full_like(parameter, 7.0))
    model = sharded(model)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    model.load_state_dict(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.full_tensor(), expected[name]), name


def run(work, ranks):
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if ranks > 1:
                    store = dist.FileStore(f"{folder}/{work.__name__}.store", ranks)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
                work()
                if ranks > 1:
                    dist.destroy_process_group()
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{work.__name__} failed")


run(save, 2)
run(prune, 1)
run(load, 2)
"""


def test_from_fsdp_to_fsdp(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FSDP, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


class Runs:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_an_index_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", TENSORS)
    (folder / ".metadata").write_bytes(pickle.dumps({"a": Runs(tmp_path / "ran")}))
    with pytest.raises(SlimfastError, match=r"it needs (posix|os|nt)\.mkdir, refused as it may run code"):
        open_weights(folder)
    assert not (tmp_path / "ran").exists()


def test_a_part_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a": TENSORS["a"]})
    torch.save(Runs(tmp_path / "ran"), tmp_path / "bad")
    length = (tmp_path / "bad").stat().st_size
    (folder / "__0_0.distcp").write_bytes((tmp_path / "bad").read_bytes())

    def change(index: Metadata) -> None:
        for info in index.storage_data.values():
            info.offset, info.length = 0, length

    edit(folder, change)
    with pytest.raises(SlimfastError, match=r"__0_0\.distcp: a: "):
        open_weights(folder).load("a")
    assert not (tmp_path / "ran").exists()


def first(index: Metadata) -> Any:
    return index.state_dict_metadata["a"]


def info(index: Metadata) -> Any:
    return next(value for key, value in index.storage_data.items() if key.fqn == "a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(info(m), "relative_path", "../x"), "expected files inside the folder, got '../x'"),
        (lambda m: setattr(info(m), "relative_path", "/x"), "expected files inside the folder, got '/x'"),
        (lambda m: setattr(info(m), "relative_path", "other"), "a: its file other is missing"),
        (lambda m: setattr(info(m), "length", 1 << 40), "__0_0.distcp ends at byte"),
        (lambda m: setattr(info(m), "offset", -1), "__0_0.distcp ends at byte"),
        (lambda m: setattr(info(m), "transform_descriptors", ["zstd"]), "expected plain tensors"),
        (lambda m: setattr(first(m), "size", torch.Size([1 << 40, 1 << 40])), "expected chunks that make up"),
        (lambda m: setattr(first(m), "chunks", first(m).chunks * 2), "expected chunks that make up"),
        (lambda m: setattr(first(m), "size", torch.Size([2, 4])), "expected chunks of shape"),
        (lambda m: setattr(first(m), "size", [1.5, -2]), "expected lengths, got"),
        (lambda m: setattr(first(m), "size", None), "is malformed"),
        (lambda m: setattr(first(m).properties, "dtype", torch.strided), "expected a dtype, got layout"),
        (lambda m: m.storage_data.clear(), "is malformed"),
        (lambda m: setattr(m, "state_dict_metadata", 3), "is malformed"),
    ],
)
def test_an_index_that_cannot_be(tmp_path: Path, change: Any, reason: str) -> None:
    folder = write(tmp_path / "x", TENSORS)
    edit(folder, change)
    with pytest.raises(SlimfastError, match=reason) as caught:
        open_weights(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80", b"once upon a time", pickle.dumps([1, 2])])
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "x", TENSORS)
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(SlimfastError, match=r"cannot read .*x: its \.metadata"):
        open_weights(folder)


def test_a_part_that_is_not_what_the_index_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", TENSORS)
    data = bytearray((folder / "__0_0.distcp").read_bytes())
    (folder / "__0_0.distcp").write_bytes(bytes(len(data)))
    with pytest.raises(SlimfastError, match=r"__0_0\.distcp: a: "):
        open_weights(folder).load("a")


def test_an_export_is_whole_and_overwrites_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), torch.ones(1, 6)
    wide = write(tmp_path / "wide", model.state_dict())
    prune_checkpoint(wide, plan_checkpoint(wide, model, x, params=0.5), tmp_path / "thin", model=model)
    export_dcp(tmp_path / "thin", tmp_path / "dcp")
    found = read_tensors(tmp_path / "dcp")
    expected = slimfast.prune_channels(model, slimfast.plan(model, x, params=0.5)).state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(SlimfastError, match="dcp: it holds a checkpoint already"):
        export_dcp(tmp_path / "thin", tmp_path / "dcp")
    with pytest.raises(SlimfastError, match="no such file"):
        export_dcp(tmp_path / "nowhere", tmp_path / "other")
