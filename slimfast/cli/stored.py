"""Weights of the user's own files in a model, whatever wrote them, and back in the dtypes they came in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from slimfast.checkpoints.thin_files import is_thin, load
from slimfast.checkpoints.thin_shards import is_thin_folder, load_checkpoint
from slimfast.cli.console import tell
from slimfast.errors import SlimfastError
from slimfast.pruning.depth.shorter import Names
from slimfast.pruning.manifests import manifest
from slimfast.storage.weights import INDEX_SUFFIX, SUFFIXES, Weights, fitted_weights

_HALF = (torch.float16, torch.bfloat16)
# What a folder of the Hugging Face hub calls its weights.
_IN_FOLDERS = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin")


def is_weight_file(name: str) -> bool:
    """Whether a model's name is that of a file of tensors (or of the index of its shards)."""
    return name.endswith(SUFFIXES) or (":" not in name and os.path.isfile(name))


def load_weights(model: nn.Module, path: Path) -> tuple[nn.Module, dict[str, torch.dtype]]:
    """Copy the tensors of a file into the model; return it, and the dtypes they are stored in.

    Names and shapes must agree, but for the prefix of a wrapper. A tied tensor may be stored under one of its
    names only. Of a file that holds a thin network of this model, the network returned is that.
    """
    if is_thin_folder(path) or is_thin(path):
        tell(f"{path}: a thin network, from which this goes on")
        thin = load_checkpoint(path, model) if path.is_dir() else load(path, model)
        return thin, in_float32(thin)
    wanted = _tensors(model)
    weights = stored_weights(model, path)
    for line in weights.told:
        tell(f"{path}: {line}")
    held = {id(wanted[name]) for name in weights.infos if name in wanted}
    wrong = []
    for name, tensor in wanted.items():
        # Old checkpoints lack the counter of batches, which only a norm without momentum reads.
        optional = name.endswith("num_batches_tracked") or id(tensor) in held
        found = weights.infos[name].shape if name in weights.infos else None
        if found != tuple(tensor.shape) and not (found is None and optional):
            wrong.append((name, tuple(tensor.shape), found))
    if wrong:
        name, shape, found = wrong[0]
        got = "no such tensor" if found is None else found
        raise SlimfastError(f"{path}: {name}: expected shape {shape}, got {got}{_other_classes(wrong)}")
    for name, info in weights.infos.items():
        if name not in wanted:
            raise SlimfastError(f"{path}: {name}: the model has no such tensor, got {info.shape}")
    stored = {name: weights.load(name) for name in weights.infos}
    model.load_state_dict(stored, strict=False)
    return model, {
        name: tensor.dtype
        for name, tensor in stored.items()
        if tensor.is_floating_point() and tensor.dtype != wanted[name].dtype
    }


def stored_weights(model: nn.Module, path: Path) -> Weights:
    """Open the tensors of a file or of a folder of the hub, under the names that the model has for them."""
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            path = path / name
            break
    wanted = _tensors(model)
    ids = [id(tensor) for tensor in wanted.values()]
    tied = {name for name, tensor in wanted.items() if ids.count(id(tensor)) > 1}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    return fitted_weights(path, wanted.keys(), tied | counters)


def in_float32(model: nn.Module) -> dict[str, torch.dtype]:
    """Hold half-precision tensors of a model in float32; returns the dtypes they had."""
    had = {name: tensor.dtype for name, tensor in _tensors(model).items() if tensor.dtype in _HALF}
    for tensor in _tensors(model).values():
        if tensor.dtype in _HALF:
            tensor.data = tensor.data.float()
    return had


@contextmanager
def in_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Hold the tensors of these names in these dtypes inside the block, as their checkpoint did."""
    tensors = _tensors(model)
    held: list[tuple[Tensor, Tensor]] = []
    for name, dtype in dtypes.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.dtype != dtype:
            held.append((tensor, tensor.data))
            tensor.data = tensor.data.to(dtype)
    try:
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


def dtypes_of_cut(
    dtypes: Mapping[str, torch.dtype], network: nn.Module, thin: nn.Module
) -> dict[str, torch.dtype]:
    """Give a network's dtypes the names that ``thin`` has for its tensors, whose layers are numbered anew
    where some were dropped.
    """
    before, after = (Names(manifest(each).dropped) for each in (network, thin))
    named = ((after.shorter(before.deep(name)), dtype) for name, dtype in dtypes.items())
    return {name: dtype for name, dtype in named if name is not None}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _other_classes(
    wrong: list[tuple[str, tuple[int, ...], tuple[int, ...] | None]],
) -> str:
    """Say what to do where the one thing that differs is the length of the last layer."""
    modules = {name.rpartition(".")[0] for name, _, _ in wrong}
    same = all(found is not None and found[1:] == shape[1:] for _, shape, found in wrong)
    if len(modules) != 1 or not same:
        return ""
    (layer,) = modules
    rows = wrong[0][2]
    assert rows is not None
    if not re.search(r"fc|head|classif|linear|output|logits", layer) or len(wrong) > 2:
        return ""
    wanted = f"num_classes={rows[0]}"
    return f"; {layer} has {rows[0]} rows in the file: pass {wanted}, as in MODEL?{wanted}"
