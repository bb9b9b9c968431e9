"""Tensors come from the disk ahead of the arithmetic, and what was used leaves again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slimfast.errors import SlimfastError
from slimfast.storage import prefetch
from slimfast.storage.prefetch import fingerprint, read_ahead
from slimfast.storage.weights import Weights, open_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(7, 5),
        "b": torch.randn(4, 3).to(torch.bfloat16),
        "c": torch.randn(6, 2, 3).double(),
        "step": torch.arange(5),
    }


@pytest.fixture
def weights(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Weights:
    names = list(tensors)
    for file, part in (("x.safetensors", names[:2]), ("y.safetensors", names[2:])):
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    files = {name: "x.safetensors" if i < 2 else "y.safetensors" for i, name in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return open_weights(index)


def test_extents_are_where_the_bytes_of_a_tensor_are(
    weights: Weights, tensors: dict[str, torch.Tensor]
) -> None:
    assert set(weights.extents) == set(tensors)
    for name, tensor in tensors.items():
        extent = weights.extents[name]
        expected = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert extent.path.read_bytes()[extent.start : extent.stop] == expected


def test_extents_go_by_the_names_without_a_wrapper_s_prefix(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(2, 3)}, tmp_path / "w.safetensors")
    extent = open_weights(tmp_path / "w.safetensors").extents["a"]
    assert extent.stop - extent.start == 24


def test_fingerprints_are_the_same_in_memory_and_on_disk(
    weights: Weights, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: fingerprint(weights, name) for name in tensors}
    assert len(set(whole.values())) == len(tensors)
    strided = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in tensors.items()}
    monkeypatch.setattr(prefetch, "_CHUNK", 16)
    for source in (weights, open_weights(tensors), open_weights(strided)):
        assert {name: fingerprint(source, name) for name in tensors} == whole
    changed = tensors["a"].clone()
    changed[6, 4] = torch.nextafter(changed[6, 4], torch.tensor(9.0))
    assert fingerprint(open_weights({"a": changed}), "a") != whole["a"]


def one(name: str) -> list[str]:
    return [name]


def test_items_come_in_order_with_the_fingerprints_of_their_tensors(weights: Weights) -> None:
    seen: dict[str, str] = {}
    order = []
    for name in read_ahead(list(weights.infos), weights, one, seen=seen):
        assert seen[name] == fingerprint(weights, name)
        order.append(name)
    assert order == list(weights.infos)
    assert list(read_ahead([], weights, one)) == []


def test_the_next_item_is_read_while_one_is_worked_on(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {name: threading.Event() for name in weights.infos}
    threads: set[str] = set()
    real = prefetch._chunks

    def chunks(extent: object, stop: object) -> Iterator[memoryview]:
        (name,) = (n for n, e in weights.extents.items() if e == extent)
        threads.add(threading.current_thread().name)
        started[name].set()
        return real(extent, stop)  # type: ignore[arg-type]

    monkeypatch.setattr(prefetch, "_chunks", chunks)
    names = list(weights.infos)
    items = read_ahead(names, weights, one)
    assert next(items) == names[0]
    assert started[names[1]].wait(10)
    assert not started[names[2]].is_set()
    items.close()  # type: ignore[attr-defined]
    assert threading.current_thread().name not in threads
    assert not any(t.name.startswith("slimfast-read-ahead") for t in threading.enumerate())


def test_a_file_that_ends_early_is_named(weights: Weights) -> None:
    path = weights.extents["c"].path
    stop = weights.extents["c"].stop
    os.truncate(path, stop - 1)
    with pytest.raises(SlimfastError, match=rf"y\.safetensors: it ends at byte {stop - 1}, expected {stop}"):
        list(read_ahead(["a", "c"], weights, one))


def test_a_file_that_is_gone_is_named(weights: Weights) -> None:
    weights.extents["c"].path.unlink()
    with pytest.raises(SlimfastError, match=r"cannot read .*y\.safetensors: No such file"):
        list(read_ahead(["a", "c"], weights, one))


@pytest.mark.parametrize(("share", "dropped"), [(0.0, ["a", "c"]), (1.0, [])])
def test_files_larger_than_the_cache_leave_it(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, share: float, dropped: list[str]
) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(prefetch, "_CACHED_SHARE", share)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *range_and_advice: calls.append(range_and_advice))
    list(read_ahead(["a", "c"], weights, one))
    extents = [weights.extents[name] for name in dropped]
    assert calls == [(e.start, e.stop - e.start, os.POSIX_FADV_DONTNEED) for e in extents]


MEASURE = """
import sys
import slimfast
from slimfast.spectra import eigenvalues
eigenvalues.BATCH_BYTES = 50 << 20
def peak():
    # Not ru_maxrss, which begins at the peak of the process that started this one.
    return next(int(x.split()[1]) << 10 for x in open("/proc/self/status") if x.startswith("VmHWM:"))
# What the first call of anything loads is not the model's.
import torch
slimfast.measure_spectra({"a": torch.eye(8)})
before = peak()
slimfast.measure_spectra(sys.argv[1])
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """12 layers of 16 MiB, of which a batch holds three."""
    size = 16 << 20
    layer = torch.from_numpy(np.random.default_rng(0).standard_normal((size // 32, 8), dtype=np.float32))
    files = {}
    for i in range(12):
        save_file({f"layer{i}": layer}, tmp_path / f"{i}.safetensors")
        files[f"layer{i}"] = f"{i}.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(index)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout)
    assert 2 * size < grown < 6 * size
