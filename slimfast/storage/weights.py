"""Where parameters come from: a module, a mapping of tensors, or a file, read one tensor at a time.

Files from strangers run no code: safetensors holds none, and pickles go through
:mod:`slimfast.storage.pickles`. What a file is its content says; names are of no consequence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from slimfast.distributed.dtensors import check_whole
from slimfast.errors import ArgumentTypeError, SlimfastError, did_you_mean, shown
from slimfast.storage.atomic import cannot_read, check_file, reason_of
from slimfast.storage.documents import parse_object
from slimfast.storage.file_kinds import cut_short, kind_of
from slimfast.storage.pickles import NESTED, StateDict, read_state_dict
from slimfast.wrappers import modules_held

INDEX_SUFFIX = ".safetensors.index.json"
# What files of weights are usually called.
SUFFIXES = (".safetensors", INDEX_SUFFIX, ".pth", ".pt", ".th", ".bin", ".ckpt", ".pth.tar")
# What wrappers put before every name: data parallelism, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# And what the attribute is called under which training code holds the network.
_HOLDERS = ("model.", "net.", "network.", "backbone.", "encoder.")
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
    ``told`` is what was chosen on the way to them, a line each.
    """

    source: str
    infos: Mapping[str, TensorInfo]
    load: Callable[[str], Tensor]
    extents: Mapping[str, Extent] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor; :class:`SlimfastError` with the nearest name where there is
        none.
        """
        if name not in self.infos:
            raise SlimfastError(f"{self.source}: no tensor {shown(name)}{did_you_mean(name, self.infos)}")
        return self.infos[name]


Source = nn.Module | Mapping[str, Tensor] | Weights | str | os.PathLike[str]


def open_weights(source: Source) -> Weights:
    """Open the tensors of ``source``, none read yet where it is a file of safetensors or an index of its
    shards.

    The tensors of a folder of ``torch.distributed.checkpoint`` are read one at a time too. A module gives its
    parameters (buffers are no weights), a mapping its tensors. A pickle may hold a bare state dict or one
    nested under the usual names; a prefix that wrappers put before every name is dropped.
    Raises :class:`SlimfastError` naming the file, and why it cannot be used.
    """
    if isinstance(source, Weights):
        return source
    stored = open_stored(source)
    return stored if isinstance(source, (nn.Module, Mapping)) else _without(_WRAPPERS, stored)


def fitted_weights(source: Source, wanted: Collection[str], optional: Collection[str] = ()) -> Weights:
    """Open the tensors of ``source`` under the names of a model: all ``wanted`` ones but ``optional`` ones.

    Prefixes of the usual wrappers and holders are taken off where every name has them, and that alone makes
    all names fit. Where nothing does, the names are as :func:`open_weights` gives them.
    """
    if isinstance(source, Weights):
        return source
    weights = open_stored(source)
    plain, prefix = weights, ""
    while True:
        if set(plain.infos) <= set(wanted) and set(wanted) - set(plain.infos) <= set(optional):
            told = (f"names without their prefix {prefix!r}",) if prefix else ()
            return replace(plain, told=(*weights.told, *told))
        found = next((p for p in (*_WRAPPERS, *_HOLDERS) if _all_have(p, plain)), None)
        if found is None:
            return _without(_WRAPPERS, weights)
        plain, prefix = _shorter(found, plain), prefix + found


def open_stored(source: Source) -> Weights:
    """Open the tensors of ``source`` under the names they are stored under."""
    if isinstance(source, Weights):
        return source
    if isinstance(source, nn.Module):
        parameters = {k: v.detach() for k, v in source.named_parameters(remove_duplicate=False)}
        return _in_memory(type(source).__name__, parameters)
    if isinstance(source, Mapping):
        return _in_memory("weights", {k: v.detach() for k, v in source.items() if isinstance(v, Tensor)})
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"expected a module, a mapping of tensors or a path, got {type(source).__name__}"
            f"{modules_held(source)}"
        )
    if os.path.isfile(Path(source) / ".metadata"):
        return _distributed(Path(source))
    path = check_file(source)
    if path.name.endswith(INDEX_SUFFIX):
        return _sharded(path)
    if kind_of(path) == "safetensors":
        infos, extents = _safetensors_header(path)
        return Weights(str(path), infos, lambda name: _read_safetensors(path, name), extents)
    found = read_state_dict(path)
    return replace(_in_memory(str(path), found.tensors), told=_told(found))


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


def _told(found: StateDict) -> tuple[str, ...]:
    """Say which of several networks of a checkpoint was taken."""
    if not found.others:
        return ()
    return (f"the tensors of {'.'.join(found.entry)!r} ({', '.join(found.others)} are there too)",)


def _without(prefixes: tuple[str, ...], weights: Weights) -> Weights:
    """Take the prefixes that every name has off the tensors' names."""
    for prefix in prefixes:
        if _all_have(prefix, weights):
            return _without(prefixes, _shorter(prefix, weights))
    return weights


def _all_have(prefix: str, weights: Weights) -> bool:
    return bool(weights.infos) and all(name.startswith(prefix) for name in weights.infos)


def _shorter(prefix: str, weights: Weights) -> Weights:
    infos = {name.removeprefix(prefix): info for name, info in weights.infos.items()}
    extents = {name.removeprefix(prefix): extent for name, extent in weights.extents.items()}
    return replace(weights, infos=infos, load=lambda name: weights.load(prefix + name), extents=extents)


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
        raise cannot_read(path, cut_short(path) or error) from None
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

    held = stored_tensors(folder, NESTED)
    infos = {
        name: TensorInfo(t.shape, t.dtype if t.dtype.is_floating_point else None) for name, t in held.items()
    }
    return Weights(str(folder), infos, lambda name: read_tensor(held[name], name))
