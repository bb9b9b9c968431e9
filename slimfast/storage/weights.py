"""Where parameters come from: a module, a mapping of tensors, or a file, read one tensor at a time.

Files from strangers are never unpickled: ``.safetensors`` holds no code, and pickles go through
``torch.load(weights_only=True)``, which refuses what is not a tensor or a plain container.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from slimfast.distributed.dtensors import check_whole
from slimfast.errors import ArgumentTypeError, SlimfastError, did_you_mean, shown
from slimfast.storage.atomic import cannot_read, check_file, reason_of
from slimfast.storage.documents import parse_object

Source = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]

PICKLES = (".pth", ".pt", ".th", ".bin")
SUFFIXES = (".safetensors", ".safetensors.index.json", *PICKLES)
# Where training scripts put the state dict inside a checkpoint, in the order in which they are looked for.
_NESTED = "state_dict model_state_dict model state_dict_ema model_ema ema params_ema params net weights"
# What wrappers put before every name: data parallelism, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# safetensors' names of the element types that hold weights, with their torch dtypes; others are not layers.
_FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before it is read; ``dtype`` is None where its elements are not floating.

    ``device`` is where it will be: files are read to the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    device: torch.device = _CPU


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie: from ``start`` to ``stop`` of a file."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, read on demand: ``infos`` is at hand, ``load(name)`` gives the tensor, detached.

    Tensors of safetensors files are maps of the file: what is not touched is not read, and it leaves the
    memory with the tensor. ``extents`` says where their bytes are; it has no tensor of other sources.
    """

    source: str
    infos: Mapping[str, TensorInfo]
    load: Callable[[str], Tensor]
    extents: Mapping[str, Extent] = field(default_factory=dict)

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor; :class:`SlimfastError` with the nearest name where there is
        none.
        """
        if name not in self.infos:
            raise SlimfastError(f"{self.source}: no tensor {shown(name)}{did_you_mean(name, self.infos)}")
        return self.infos[name]


def open_weights(source: Source) -> Weights:
    """Open the tensors of ``source``, none read yet where it is a file of safetensors or an index of its
    shards.

    The tensors of a folder of ``torch.distributed.checkpoint`` are read one at a time too. A module gives its
    parameters (buffers are no weights), a mapping its tensors. A pickle may hold a bare state dict or one
    nested under the usual names; a prefix that wrappers put before every name is dropped.
    Raises :class:`SlimfastError` naming the file, and why it cannot be used.
    """
    if isinstance(source, nn.Module):
        parameters = {k: v.detach() for k, v in source.named_parameters(remove_duplicate=False)}
        return _in_memory(type(source).__name__, parameters)
    if isinstance(source, Mapping):
        return _in_memory("weights", {k: v.detach() for k, v in source.items() if isinstance(v, Tensor)})
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"expected a module, a mapping of tensors or a path, got {type(source).__name__}"
        )
    if os.path.isfile(Path(source) / ".metadata"):
        return _renamed(_distributed(Path(source)))
    path = check_file(source)
    if path.name.endswith(".safetensors"):
        infos, extents = _safetensors_header(path)
        return _renamed(Weights(str(path), infos, lambda name: _read_safetensors(path, name), extents))
    if path.name.endswith(".safetensors.index.json"):
        return _renamed(_sharded(path))
    if path.suffix in PICKLES:
        return _renamed(_in_memory(str(path), _unpickled(path)))
    raise cannot_read(path, f"expected a name ending in {', '.join(SUFFIXES)}")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read every tensor of a file by name, as :func:`open_weights` finds them."""
    weights = open_weights(path)
    return {name: weights.load(name) for name in weights.infos}


def _in_memory(label: str, tensors: Mapping[str, Tensor]) -> Weights:
    check_whole(tensors, label)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise SlimfastError(f"{label}: expected weights with values, got a meta tensor ({name})")
    infos = {
        k: TensorInfo(tuple(v.shape), v.dtype if v.is_floating_point() else None, v.device)
        for k, v in tensors.items()
    }
    return Weights(label, infos, tensors.__getitem__)


def _renamed(weights: Weights) -> Weights:
    """Take the prefix that a wrapper put before every name off the tensors."""
    for prefix in _PREFIXES:
        if weights.infos and all(name.startswith(prefix) for name in weights.infos):
            return _renamed(_without(prefix, weights))
    return weights


def _without(prefix: str, weights: Weights) -> Weights:
    infos = {name.removeprefix(prefix): info for name, info in weights.infos.items()}
    extents = {name.removeprefix(prefix): extent for name, extent in weights.extents.items()}
    return Weights(weights.source, infos, lambda name: weights.load(prefix + name), extents)


def _safetensors_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, Extent]]:
    """Read what is known of the tensors of a file, and where in it they are."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            infos = {
                k: TensorInfo(tuple(s.get_shape()), _FLOATING.get(s.get_dtype())) for k, s in slices.items()
            }
        # The library has found the header to be sound, but does not say where the tensors are.
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        first = 8 + length
        extents = {
            name: Extent(path, *(first + offset for offset in header[name]["data_offsets"])) for name in infos
        }
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise cannot_read(path, error) from None
    return infos, extents


def _read_safetensors(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    # TypeError: a shape that PyTorch cannot hold (2**63 by 0).
    except (SafetensorError, OSError, TypeError) as error:
        raise cannot_read(path, f"{name}: {reason_of(error)}") from None


def _sharded(index: Path) -> Weights:
    """Open the tensors of an index of shards, which maps each tensor's name to a file of its folder.

    The shards hold what the index says of them, and nothing else.
    """
    files = _weight_map(index)
    shards = {file: _shard(index, file) for file in sorted(set(files.values()))}
    infos: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    for file, path in shards.items():
        held, where_held = _safetensors_header(path)
        for name in held:
            if files.get(name) != file:
                where = f"in {shown(files[name])}" if name in files else "nowhere"
                raise SlimfastError(f"{index}: {shown(name)} is {where} by the index, but also in {file}")
        infos |= held
        extents |= where_held
    for name, file in files.items():
        if name not in infos:
            raise SlimfastError(f"{index}: {shown(name)} is not in {file}")
    paths = {name: shards[file] for name, file in files.items()}
    in_order = {name: infos[name] for name in files}
    return Weights(str(index), in_order, lambda name: _read_safetensors(paths[name], name), extents)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = index.read_bytes()
    except OSError as error:
        raise cannot_read(index, error) from None
    fields = parse_object(content, f"cannot read {index}").object("weight_map")
    return {name: fields.string(name) for name in fields.names()}


def _shard(index: Path, file: str) -> Path:
    """Find the shard an index names; one outside the index's own folder is refused.

    Links inside the folder are followed: download caches are made of them.
    """
    parts = PureWindowsPath(file).parts
    outside = PurePosixPath(file).is_absolute() or PureWindowsPath(file).anchor or ".." in parts
    if outside or not file.endswith(".safetensors"):
        raise SlimfastError(f"{index}: expected .safetensors files inside its folder, got {shown(file)}")
    try:
        return check_file(index.parent / file)
    except SlimfastError:
        raise cannot_read(index, f"its shard {shown(file)} is missing") from None


def _distributed(folder: Path) -> Weights:
    """Open the tensors of a folder of ``torch.distributed.checkpoint``, which is costly to import."""
    from slimfast.storage.torch_checkpoints import read_tensor, stored_tensors

    held = stored_tensors(folder, _NESTED.split())
    infos = {
        name: TensorInfo(t.shape, t.dtype if t.dtype.is_floating_point else None) for name, t in held.items()
    }
    return Weights(str(folder), infos, lambda name: read_tensor(held[name], name))


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a pickle of tensors; the pickle runs no code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # a malformed file can make the reader raise anything
        raise cannot_read(path, _load_error(error)) from None
    tensors = _state_dict(content)
    if not tensors:
        raise cannot_read(path, f"expected a state dict, got {_describe(content)}")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is an archive whose records lie in it as they are, to be mapped instead of read.

    An archive packed anew may hold them deflated; a map of it would show the deflated bytes as weights.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _state_dict(content: object) -> dict[str, Tensor]:
    """Find the tensors of a bare state dict, or of the first nested in a checkpoint; empty where there is
    none.
    """
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED.split():
        if isinstance(content.get(key), Mapping):
            nested = _state_dict(content[key])
            if nested:
                return nested
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _load_error(error: Exception) -> str:
    """Explain why ``torch.load`` gave up, in one line instead of its page of advice."""
    text = str(error)
    wanted = re.search(r"Unsupported (?:global|class): ?(?:GLOBAL )?(\S+)", text)
    if wanted:
        return f"the pickle needs {wanted[1]}, refused as it may run code (save its state_dict() instead)"
    if "Weights only load failed" in text:
        return "it is not a PyTorch file of tensors"
    if isinstance(error, EOFError) or "central directory" in text or "zip archive" in text:
        return "the file is empty or truncated"
    return reason_of(error)
