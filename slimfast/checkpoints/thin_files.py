"""Thin networks in files: safetensors with the manifest in its header, no pickle, whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimfast.arrays import Shape
from slimfast.distributed.dtensors import gathered, is_part
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.cutting.patches import read_attribute
from slimfast.graph.recording.module_copies import aliases, named_tensors
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

_log = logging.getLogger(__name__)
# Integers of PyTorch's layers that say how they compute, not how wide they are.
_NO_LENGTHS = frozenset(
    ("stride", "padding", "dilation", "kernel_size", "output_padding", "padding_idx", "num_layers")
)


def save(thin: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network, thin or not, to a ``.safetensors`` file: its tensors and what :func:`load` needs to
    cut.

    Parameters and persistent buffers are stored in their dtype, tied ones once. The file is written beside
    and then renamed. A network that FSDP has sharded is gathered, for which all its processes make the call;
    the first one writes.

    Args:
        thin: The network.
        path: The file; one that is there is replaced.

    Raises:
        SlimfastError: Where it cannot be written, or the network holds what it cannot store.

    Example:
        slimfast.save(thin, "thin.safetensors")
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ArgumentError(f"save: expected a path ending in .safetensors, got {os.fspath(path)}")
    described = manifest(thin)
    present = named_tensors(thin)
    passing = _not_persistent(thin)
    _check_tensors(present, described.shapes(), passing - described.keeps.keys(), type(thin).__name__)
    _check_storable(thin)
    sharded = any(is_part(tensor) for tensor in present.values())
    writes = not sharded or torch.distributed.get_rank() == 0
    stored: dict[str, Tensor] = {}
    for name, held in present.items():
        if name in passing:
            continue
        if held.is_meta:
            raise SlimfastError(f"save: {name} is a meta tensor and has no values")
        tensor = gathered(held, keep=writes)
        if not writes:
            continue
        # A copy of its own wherever the memory is shared or has gaps, which the format does not know.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        stored[name] = tensor.detach() if whole else tensor.detach().contiguous().clone()
    if not writes:
        return
    _log.debug("saving %d tensors of %s", len(stored), type(thin).__name__)
    write_tensor_document(path, described.to_json(), stored)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load the network in a file of :func:`save`: a copy of the fresh, wide ``model``, cut to fit.

    Nothing is traced and ``model`` is untouched. Tensors have the dtype they were stored in and the device
    they have in ``model`` (the CPU where that is "meta"); mode and ``requires_grad`` are the model's. Buffers
    that are not persistent are cut from the model's own.

    Args:
        path: The file.
        model: The wide network that the thin one was cut from, with any weights.

    Returns:
        The thin network with the file's tensors.

    Raises:
        SlimfastError: Naming the tensor or the attribute, for whatever does not match.

    Example:
        thin = slimfast.load("thin.safetensors", resnet18())
    """
    shown = os.fspath(path)
    with open_tensor_document(path, "a network saved by slimfast") as file:
        described = Manifest.from_json(file.document, what=f"{shown}: manifest")
        if (thin := manifest(model)).keeps or thin.dropped:
            raise SlimfastError(
                f"{shown}: {type(model).__name__}: expected a fresh, wide model, got one that is already thin"
            )
        try:
            short = described.shortened(model)
        except SlimfastError as error:
            raise SlimfastError(f"{shown}: {error}") from None
        _check_model(short, described, shown)
        model = short
        passing = _not_persistent(model)
        expected = {name: shape for name, shape in described.shapes().items() if name not in passing}
        _check_names(file.shapes, expected, shown)
        file.check()
        tensors = {name: file.tensor(name) for name in expected}
    wide = named_tensors(model)
    for name in passing:
        if wide[name].is_meta:
            raise SlimfastError(
                f"{shown}: {name} is not stored and is a meta tensor in the model: build it on a device"
            )
        tensors[name] = described.slice_of(name, wide[name])
    placed = {n: t.to("cpu" if wide[n].is_meta else wide[n].device) for n, t in tensors.items()}
    _log.debug("loaded %d tensors of %s", len(placed), shown)
    return described.thin_copy(model, placed, what=shown)


def is_thin(path: str | os.PathLike[str]) -> bool:
    """Say whether a file is one of :func:`save`; a file that cannot be read is none."""
    try:
        with open_tensor_document(path, "a network") as file:
            described = Manifest.from_json(file.document)
            return bool(described.keeps or described.dropped)
    except SlimfastError:
        return False


def thin_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read what was kept of the network in a file of :func:`save`, without its tensors.

    Raises :class:`SlimfastError` for any other file.
    """
    with open_tensor_document(path, "a network saved by slimfast") as file:
        return Manifest.from_json(file.document, what=f"{os.fspath(path)}: manifest")


def _check_tensors(
    present: Mapping[str, Tensor], expected: Mapping[str, Shape], made: set[str], what: str
) -> None:
    """Check the tensors, but for buffers that are ``made`` by a forward as it needs them: neither stored nor
    cut.
    """
    _check_names(
        {name: tuple(tensor.shape) for name, tensor in present.items() if name not in made},
        {name: shape for name, shape in expected.items() if name not in made},
        what,
    )


def _check_names(present: Mapping[str, Shape], expected: Mapping[str, Shape], what: str) -> None:
    """Name in one line the first tensor that is missing, has another shape, or should not be there."""
    for name, shape in expected.items():
        if name not in present:
            raise SlimfastError(f"{what}: {name}: expected shape {shape}, got no such tensor")
        if present[name] != shape:
            raise SlimfastError(f"{what}: {name}: expected shape {shape}, got {present[name]}")
    for name, shape in present.items():
        if name not in expected:
            raise SlimfastError(f"{what}: {name}: expected no such tensor, got shape {shape}")


def _check_model(model: nn.Module, described: Manifest, shown: str) -> None:
    """Refuse a model that is not the wide network this file was cut from, by the first name that differs."""
    label = f"{shown}: {type(model).__name__}"
    made = _not_persistent(model) - described.keeps.keys()
    _check_tensors(named_tensors(model), described.shapes_before, made, label)
    modules = dict(model.named_modules())
    for patch in described.patches:
        where = f"{label}: {patch.module or 'the model'}: {patch.attribute}"
        if patch.module not in modules:
            raise SlimfastError(f"{where}: expected {patch.before}, got no such module")
        if patch.attribute in _NO_LENGTHS:
            raise SlimfastError(
                f"{where}: expected an attribute that a cut changes, got one that it does not"
            )
        got = read_attribute(modules[patch.module], patch.attribute)
        if got != patch.before:
            raise SlimfastError(f"{where}: expected {patch.before}, got {got}")


def _check_storable(model: nn.Module) -> None:
    for prefix, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise SlimfastError(
                f"save: {prefix or type(model).__name__} has extra state, which is not a tensor"
            )


def _not_persistent(model: nn.Module) -> set[str]:
    """Find the buffers that a state dict leaves out under all of their names."""
    names: set[str] = set()
    persistent: set[str] = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            (names if name in module._non_persistent_buffers_set else persistent).add(full)
    first = aliases(model)
    return {first.get(n, n) for n in names} - {first.get(n, n) for n in persistent}
