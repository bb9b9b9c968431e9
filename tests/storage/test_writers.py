"""Every writer of the package against a full disk, kill -9 in the middle, and a folder without permission:
what is there afterwards is whole, or not there. Appended files (the sidecar of spectra, a teacher's logits)
have their own tests, as have shards (test_sidecar, test_teacher_cache, test_shards).
"""

from __future__ import annotations

import ast
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import TESTS
from support.synthetic_device import Device
from torch import nn

import slimfast
from slimfast.calibration.files import save_calibration
from slimfast.calibration.folders import load_calibration
from slimfast.calibration.moments import calibrate
from slimfast.checkpoints.shard_folder import INDEX
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_shards import export_dcp, load_checkpoint
from slimfast.distillation.resume import FILE, load_training, save_training
from slimfast.errors import SlimfastError
from slimfast.gradual.rounds_folder import RoundsFolder
from slimfast.latency import LatencyTable, latency_table
from slimfast.reports import plots
from slimfast.storage import safetensors_writer
from slimfast.storage.weights import read_tensors

X = torch.ones(2, 6)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).eval()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is written: made once."""
    model = net()
    plan = slimfast.plan(model, X, params=0.5)
    thin = slimfast.prune_channels(model, plan)
    folder = tmp_path_factory.mktemp("shards")
    slimfast.save(model, folder / "wide.safetensors")
    prune_checkpoint(folder / "wide.safetensors", plan, folder / "thin", model=net())
    graph = slimfast.trace_channels(model, X)
    spectra = slimfast.measure_spectra(model, graph)
    return {
        "plan": plan,
        "thin": thin,
        "spectra": spectra,
        "figure": plots.plan_figure(plan, spectra) if find_spec("matplotlib") else None,
        "calibration": calibrate(model, graph, [X]),
        "training": {
            "recipe": {}, "epoch": 1, "step": 0, "losses": torch.zeros(2), "records": [],
            "student": dict(model.state_dict()), "optimizer": {}, "scaler": None, "rng": None, "best": None,
            "teacher": None,
            "average": None,
        },
        "table": latency_table(graph, model, X, measure=Device()),
        "shards": folder / "thin",
        "wide": folder / "wide.safetensors",
    }  # fmt: skip


Write = Callable[[dict[str, Any], Path], object]


def same_tensors(a: Path, b: Path) -> None:
    first, second = read_tensors(a), read_tensors(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def write_tensors(things: dict[str, Any], path: Path) -> None:
    state = things["thin"].state_dict()
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    safetensors_writer.write_tensors(path, shapes, state.items())


def save_figure(things: dict[str, Any], path: Path) -> None:
    if things["figure"] is None:
        pytest.skip("matplotlib is not installed")
    plots.save_figure(things["figure"], path)


def write_report(things: dict[str, Any], path: Path) -> None:
    if find_spec("plotly") is None:
        pytest.skip("plotly is not installed")
    slimfast.report(things["plan"], path)


# Module -> name of the file, what writes it, what reads it as whole.
WRITERS: dict[str, tuple[str, Write, Callable[[Path], object]]] = {
    "plans/plan_data": ("plan.json", lambda t, p: t["plan"].save(p), slimfast.Plan.load),
    "checkpoints/thin_files": (
        "t.safetensors",
        lambda t, p: slimfast.save(t["thin"], p),
        lambda p: slimfast.load(p, net()),
    ),
    "spectra/files": (
        "s.safetensors",
        lambda t, p: slimfast.save_spectra(t["spectra"], p),
        slimfast.load_spectra,
    ),
    "calibration/files": (
        "c.safetensors",
        lambda t, p: save_calibration(t["calibration"], p),
        load_calibration,
    ),
    "distillation/resume": (
        FILE,
        lambda t, p: save_training(p.parent, t["training"]),
        lambda p: load_training(p.parent),
    ),
    "storage/safetensors_writer": ("w.safetensors", write_tensors, read_tensors),
    "reports/plots": ("p.png", save_figure, lambda p: None),
    "checkpoints/shards": (
        f"thin/{INDEX}",
        lambda t, p: prune_checkpoint(t["wide"], t["plan"], p.parent, model=net()),
        lambda p: load_checkpoint(p.parent, net()),
    ),
    "latency/table": ("l.json", lambda t, p: t["table"].save(p), LatencyTable.of),
    "reports/html": ("r.html", write_report, lambda p: None),
    "gradual/rounds_folder": (
        "rounds.json",
        lambda t, p: RoundsFolder(p.parent, "r", None).write(1, {"macs": 9.0}, t["thin"], {}, plan=t["plan"]),
        lambda p: RoundsFolder(p.parent, "r", None).found(),
    ),
}
# What writes by other means, and where it is tested.
ELSEWHERE = {
    "spectra/sidecar": "spectra/test_sidecar",
    "distillation/teacher_cache": "distillation/test_teacher_cache",
    "distillation/top_file": "distillation/test_top_teacher",
    "huggingface/pretrained": "huggingface/test_pretrained",
    "cli/digits_demo": "cli/test_digits_demo",
    "storage/atomic": "storage/test_atomic",
    "checkpoints/exporting": "checkpoints/test_thin_files_errors",
    "storage/tensor_documents": "storage/test_tensor_documents",
    "calibration/sums_file": "checkpoints/test_repairing",
    "calibration/folders": "checkpoints/test_calibrating",
    "checkpoints/repairing": "checkpoints/test_repairing",
    "latency/resuming": "latency/test_latency_table",
    "cli/studying": "cli/test_cli_studying",
}
CALLS = {"atomic_path", "write_tensor_document", "write_text", "write_bytes", "save_file", "touch"}
CALLS |= {"mkdir", "rename", "savefig", "write_tensors"}


def writes(path: Path) -> bool:
    """Whether a file of the package calls something that writes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        parts = [part for a in node.args for part in ast.walk(a) if isinstance(part, ast.Constant)]
        texts = [part.value for part in parts if isinstance(part.value, str)]
        modes = any(set(text) <= set("rwabx+") and set(text) & set("wax+") for text in texts)
        hub = name == "save_pretrained" and isinstance(function, ast.Attribute)
        if name in CALLS or hub or (name in ("open", "FileIO") and modes):
            return True
    return False


def test_every_writer_of_the_package_is_tested() -> None:
    package = Path(slimfast.__file__).parent
    found = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py") if writes(path)}
    assert found == set(WRITERS) | set(ELSEWHERE)
    for name in ELSEWHERE.values():
        assert (TESTS / f"{name}.py").exists()


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files may grow to that size, then the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_fills_up(name: str, old: bool, things: dict[str, Any], tmp_path: Path) -> None:
    file, write, read = WRITERS[name]
    target = tmp_path / "x" / file
    target.parent.mkdir(parents=True)
    write(things, target)
    size = target.stat().st_size
    if not old:
        target.unlink()
    before = target.read_bytes() if old else None
    for limit in (0, 1, size // 2, size - 1):
        with room(limit), pytest.raises(SlimfastError, match=r"^cannot write ") as caught:
            write(things, target)
        assert "\n" not in str(caught.value)
        assert (target.read_bytes() if target.exists() else None) == before
        assert not [left for left in files(tmp_path) if ".part" in left]
    write(things, target)
    read(target)


def killed_by(work: Callable[[], object]) -> int:
    """The signal that ended a process of its own, which did some work; 0 where it ended by itself."""
    with warnings.catch_warnings():
        # Of forks beside other threads, which have nothing to do with what the child does.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("moment", ["half", "replace"])
def test_a_process_killed_while_it_writes(
    name: str, moment: str, things: dict[str, Any], tmp_path: Path
) -> None:
    file, write, read = WRITERS[name]
    folder = tmp_path / "x"
    target = folder / file
    target.parent.mkdir(parents=True)
    write(things, target)
    whole = files(folder)
    size = target.stat().st_size
    before = b"what was there" if name != "checkpoints/shards" else None
    target.unlink()
    if before is not None:
        target.write_bytes(before)

    def die() -> None:
        torch.set_num_threads(1)
        if moment == "half":
            # The kernel ends the process at the byte that does not fit.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            with room(size // 2):
                write(things, target)
        else:
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            write(things, target)

    assert killed_by(die) in (signal.SIGXFSZ, signal.SIGKILL)
    assert (target.read_bytes() if target.exists() else None) == before
    write(things, target)
    read(target)
    # What torch.save writes has the temporary file's name in it.
    if name not in ("reports", "distillation/resume", "gradual/rounds_folder"):
        found = files(folder)
        assert {left: found[left] for left in whole} == whole


# Shards are made in a folder of their own: test_files has one that cannot be made.
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "checkpoints/shards"])
def test_a_folder_without_permission(
    name: str,
    things: dict[str, Any],
    read_only_folder: Path,
) -> None:
    file, write, _ = WRITERS[name]
    with pytest.raises(SlimfastError, match=r"^cannot (write|make).*Permission denied$"):
        write(things, read_only_folder / file)


def test_an_export_for_fsdp_that_does_not_fit(things: dict[str, Any], tmp_path: Path) -> None:
    with room(1000), pytest.raises(SlimfastError, match=r"^cannot write "):
        export_dcp(things["shards"], tmp_path / "dcp")
    assert not (tmp_path / "dcp" / ".metadata").exists()
    export_dcp(things["shards"], tmp_path / "dcp")
    same_tensors(tmp_path / "dcp", things["shards"] / INDEX)
