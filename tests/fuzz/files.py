"""Targets that read files: bytes in; a result, or one line for the user."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as safetensors_tensors
from safetensors.torch import save as safetensors_bytes
from torch import nn

import slimfast
from slimfast import Plan, SlimfastError
from slimfast.distillation.resume import FILE, load_training, save_training
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.spectra.records import _FRAME, _MAGIC
from slimfast.spectra.sidecar import _HEADER, open_sidecar
from slimfast.storage.weights import open_weights

Read = Callable[[bytes], None]


@cache
def folder() -> Path:
    """Where the files of this process go: memory, where the system has a folder of it."""
    memory = Path("/dev/shm")
    found = tempfile.mkdtemp(prefix="slimfast-fuzz-", dir=memory if memory.is_dir() else None)
    return Path(found)


@contextmanager
def one_line(named: str = "") -> Iterator[None]:
    """What is refused is refused by a :class:`SlimfastError` of one short printable line, with ``named``."""
    try:
        yield
    except SlimfastError as error:
        line = str(error)
        assert line.isprintable(), f"not one line: {line!r}"
        assert len(line) < 5000, f"a line of {len(line)} characters"
        assert named in line, f"{named} is not in {line!r}"


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@cache
def thin() -> nn.Module:
    return slimfast.slim(model(), torch.zeros(1, 6), params=0.6)


def _file(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def _content(write: Callable[[Path], Any], suffix: str) -> bytes:
    path = folder() / f"seed{suffix}"
    path.unlink(missing_ok=True)
    write(path)
    return path.read_bytes()


def _load_all(path: Path) -> None:
    with one_line(str(folder())):
        weights = open_weights(path)
        for name in weights.infos:
            weights.load(name)


def plan(content: bytes) -> None:
    with one_line("fuzzed"):
        found = Plan.from_json(content, what="fuzzed")
        text = found.to_json()
        assert Plan.from_json(text) == found
        str(found).encode()


def manifest_json(content: bytes) -> None:
    with one_line("fuzzed"):
        found = Manifest.from_json(content.decode(errors="surrogateescape"), what="fuzzed")
        assert Manifest.from_json(found.to_json()).to_json() == found.to_json()


def safetensors(content: bytes) -> None:
    path = _file("x.safetensors", content)
    _load_all(path)
    with one_line(str(path)):
        slimfast.measure_spectra(path, backend="reference")


def index(content: bytes) -> None:
    if not (folder() / "shard.safetensors").exists():
        _file("shard.safetensors", safetensors_bytes({"a": torch.ones(2, 3), "b": torch.ones(2)}))
    _load_all(_file("x.safetensors.index.json", content))


def spectra(content: bytes) -> None:
    path = _file("spectra.safetensors", content)
    with one_line(str(path)):
        slimfast.load_spectra(path)


def checkpoint(content: bytes) -> None:
    path = _file("thin.safetensors", content)
    with one_line(str(path)):
        slimfast.load(path, model())


def calibration(content: bytes) -> None:
    path = _file("calibration.safetensors", content)
    with one_line(str(path)):
        slimfast.load_calibration(path)


def pickle(content: bytes) -> None:
    _load_all(_file("x.pth", content))


def training(content: bytes) -> None:
    _file(FILE, content)
    with one_line(str(folder())):
        load_training(folder())


def sidecar(content: bytes) -> None:
    path = _file("sidecar", content)
    with one_line(str(path)), open_sidecar(path) as found:
        assert isinstance(found.found, dict)


def record(content: bytes) -> None:
    """A sidecar of one record whose checksum is right, whatever is in it."""
    frame = _FRAME.pack(_MAGIC, len(content), hashlib.sha256(content).digest())
    sidecar(_HEADER + frame + content)


def header(text: bytes, body: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(text)) + text + body


def _metadata(document: str, tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors_bytes(tensors, metadata={"slimfast": document})


def _document(content: bytes) -> str:
    """The document in the metadata of a safetensors file."""
    size = struct.unpack_from("<Q", content)[0]
    text: str = json.loads(content[8 : 8 + size])["__metadata__"]["slimfast"]
    return text


@cache
def documents() -> dict[str, str]:
    """Sound documents of every kind."""
    found = slimfast.select(model(), slimfast.plan(model(), torch.zeros(1, 6), params=0.6))
    measured = _content(
        lambda path: slimfast.save_spectra(slimfast.measure_spectra(model()), path), ".safetensors"
    )
    return {
        "plan": found.to_json(),
        "manifest": manifest(thin()).to_json(),
        "spectra": _document(measured),
        "calibration": _document(_calibration()),
    }


def with_document(kind: str, text: str) -> bytes:
    """A file of that kind with this document in it."""
    if kind == "plan":
        return text.encode(errors="surrogatepass")
    if kind == "manifest":
        return _metadata(text, {name: tensor.detach() for name, tensor in thin().state_dict().items()})
    if kind == "calibration":
        return _metadata(text, safetensors_tensors(_calibration()))
    values = {s.name: torch.from_numpy(s.eigenvalues) for s in slimfast.measure_spectra(model()).values()}
    return _metadata(text, values)


def _saved(**content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _old(**content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _sidecar() -> bytes:
    path = folder() / "seed.sidecar"
    slimfast.measure_spectra(model(), resume=path)
    return path.read_bytes()


@cache
def _calibration() -> bytes:
    path = folder() / "seed.calibration.safetensors"
    graph = slimfast.trace_channels(model(), torch.zeros(1, 6))
    slimfast.save_calibration(slimfast.calibrate(model(), graph, [torch.randn(4, 6)]), path)
    return path.read_bytes()


def _training() -> bytes:
    state: dict[str, Any] = {"epoch": 0, "step": 0, "losses": torch.zeros(2), "records": []}
    state |= {name: {} for name in ("recipe", "student", "optimizer")}
    state |= dict.fromkeys(("scaler", "rng", "best", "average", "teacher"))
    save_training(folder(), state)
    assert load_training(folder()) is not None
    return (folder() / FILE).read_bytes()


def _first_record() -> int:
    length: int = _FRAME.unpack_from(_sidecar(), len(_HEADER))[1]
    return length


def words() -> list[bytes]:
    """What stands in documents, and what should not: the dictionary of guided fuzzing."""
    names = {name for document in documents().values() for name in re.findall(r'"[^"]*"', document)}
    odd = [
        "NaN",
        "-Infinity",
        "1e999",
        "null",
        "true",
        "[[[[",
        "{}",
        '"\\ud800"',
        str(2**63),
        "-1",
        "0x1p9999",
    ]
    return [text.encode() for text in sorted(names) + odd]


def seeds(name: str) -> list[bytes]:
    """Sound files for a target to start from."""
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(2).bfloat16()}
    made: dict[str, Callable[[], list[bytes]]] = {
        "plan": lambda: [documents()["plan"].encode()],
        "manifest": lambda: [documents()["manifest"].encode()],
        "safetensors": lambda: [safetensors_bytes(tensors), header(b"{}"), safetensors_bytes({})],
        "index": lambda: [
            b'{"metadata": {}, "weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}'
        ],
        "spectra": lambda: [with_document("spectra", documents()["spectra"])],
        "checkpoint": lambda: [with_document("manifest", documents()["manifest"])],
        "calibration": lambda: [_calibration()],
        "pickle": lambda: [_saved(**tensors), _old(**tensors), _old(state_dict={"module.a": tensors["a"]})],
        "training": lambda: [_training()],
        "sidecar": lambda: [_sidecar()],
        "record": lambda: [_sidecar()[len(_HEADER) + _FRAME.size :][: _first_record()]],
    }
    return made[name]()


READERS: dict[str, Read] = {
    "plan": plan,
    "manifest": manifest_json,
    "safetensors": safetensors,
    "index": index,
    "spectra": spectra,
    "checkpoint": checkpoint,
    "calibration": calibration,
    "pickle": pickle,
    "training": training,
    "sidecar": sidecar,
    "record": record,
}
