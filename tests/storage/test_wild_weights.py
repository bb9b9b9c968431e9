"""Weights as they are found: any suffix, anything beside the tensors, and files that are something else."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.storage.pickles import NESTED
from slimfast.storage.weights import fitted_weights, open_weights, read_tensors

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}


def assert_read(path: Path) -> None:
    found = read_tensors(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "name", ["w", "w.ckpt", "w.pth.tar", "w.model", "epoch=3-step=100.ckpt", "w.safetensors"]
)
def test_the_content_says_what_a_file_is(tmp_path: Path, name: str) -> None:
    torch.save(TENSORS, tmp_path / name)
    assert_read(tmp_path / name)
    save_file(TENSORS, tmp_path / "of.pth")
    shutil.move(tmp_path / "of.pth", tmp_path / name)
    assert_read(tmp_path / name)


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, layers=[1, 2]),
    "simple": types.SimpleNamespace(a=1),
    "scalar": np.float64(0.5),
    "integer": np.int64(3),
    "array": np.arange(6).reshape(2, 3),
    "objects": np.array(["a", None], dtype=object),
    "dtype": np.dtype("float32"),
    "path": pathlib.Path("a/b"),
    "time": datetime.datetime(2020, 1, 2),
    "span": datetime.timedelta(days=1),
    "default": collections.defaultdict(list, {"a": [1]}),
    "queue": collections.deque([1, 2]),
    "types": [int, dict, list],
    "set": {1, 2},
    "range": range(3),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_the_tensors_is_passed_over(tmp_path: Path, what: str, zipped: bool) -> None:
    path = tmp_path / "last.ckpt"
    content = {"hyper_parameters": BESIDE[what], "state_dict": TENSORS, "more": [BESIDE[what]]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    assert_read(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_the_user_has_allowed_stays_allowed(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(a=1), "model": TENSORS}, tmp_path / "w.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = torch.serialization.get_safe_globals()
        assert_read(tmp_path / "w.pt")
        assert set(torch.serialization.get_safe_globals()) == set(before)


class Payload:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, getattr, __import__])
def test_code_in_what_lies_beside_is_refused_and_not_run(tmp_path: Path, function: Any) -> None:
    trace = tmp_path / "trace"
    arguments = (f"mkdir {trace}",) if function is os.system else (str(trace),)
    inner = Payload((function, arguments))
    namespace = argparse.Namespace(a=inner)
    torch.save({"args": namespace, "state_dict": TENSORS}, tmp_path / "w.pth")
    with pytest.raises(SlimfastError, match=r"w\.pth: .*(refused|is blocked|not a PyTorch file)"):
        open_weights(tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize("key", NESTED)
def test_the_usual_places_of_a_state_dict(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: TENSORS, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth")


def test_which_of_two_networks_was_taken_is_told(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    torch.save({"state_dict": TENSORS, "state_dict_ema": other}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").told == (
        "the tensors of 'state_dict' (state_dict_ema are there too)",
    )


PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PREFIXES), max_size=3))
def test_prefixes_go_where_that_alone_makes_names_fit(prefixes: list[str]) -> None:
    prefix = "".join(prefixes)
    stored = {prefix + name: tensor for name, tensor in TENSORS.items()}
    found = fitted_weights(stored, TENSORS)
    assert list(found.infos) == list(TENSORS)
    assert torch.equal(found.load("a.bias"), TENSORS["a.bias"])
    assert found.told == ((f"names without their prefix {prefix!r}",) if prefix else ())
    # A name of the model that begins as a wrapper does is no prefix.
    assert list(fitted_weights(stored, stored).infos) == list(stored)


def test_prefixes_stay_where_the_names_do_not_fit_without_them() -> None:
    stored = {f"model.{name}": tensor for name, tensor in TENSORS.items()}
    assert list(fitted_weights(stored, {*TENSORS, "b.weight"}).infos) == list(stored)
    mixed: dict[str, Tensor] = {**stored, "loss.weight": torch.ones(1)}
    assert list(fitted_weights(mixed, TENSORS).infos) == list(mixed)
    assert list(fitted_weights(stored, {*TENSORS, "steps"}, {"steps"}).infos) == list(TENSORS)


def scripted(path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.script(nn.Linear(2, 2)).save(path)


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-30])


def arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.zeros(3))


def shortened(path: Path) -> None:
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-30])


OTHERS = {
    "Git LFS pointer": lambda p: p.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    ),
    "TorchScript": scripted,
    "truncated: the end of its archive": cut,
    r"truncated: expected \d+ bytes, got \d+": shortened,
    r"exported program \(\.pt2\)": lambda p: (
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), p.with_suffix(".pt2"))
        or p.with_suffix(".pt2").rename(p)
    ),
    r"NumPy archive \(\.npz\)": arrays,
    "HDF5": lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)),
    "GGUF": lambda p: p.write_bytes(b"GGUF" + bytes(50)),
    "gzip": lambda p: p.write_bytes(b"\x1f\x8b" + bytes(50)),
    "web page": lambda p: p.write_text("<!DOCTYPE html><html>403"),
    "the file is empty": lambda p: p.touch(),
    "got neither": lambda p: p.write_bytes(b"once upon a time"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["w.pth", "w.bin"])
def test_other_files_are_named_as_what_they_are(tmp_path: Path, what: str, name: str) -> None:
    path = tmp_path / name
    OTHERS[what](path)
    with pytest.raises(SlimfastError, match=what) as error:
        open_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_pickle_says_so(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(pickle.dumps({"a": [1.0]}))
    with pytest.raises(SlimfastError, match="cannot read"):
        open_weights(tmp_path / "w")
