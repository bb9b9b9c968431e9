"""Thin networks in files: safetensors with the manifest in its header, no pickle, whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from slimfast.arrays import Shape
from slimfast.checkpoints.exporting import Run, write_onnx
from slimfast.distributed.dtensors import gathered, is_part
from slimfast.errors import ArgumentError, SlimfastError, one_line
from slimfast.graph.cutting.patches import read_attribute
from slimfast.graph.recording.forward import PROCESS_LOCK, tensors_in
from slimfast.graph.recording.inputs import arguments, cloned, map_leaves
from slimfast.graph.recording.module_copies import aliases, copy_with, named_tensors
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.storage.atomic import atomic_path
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

_log = logging.getLogger(__name__)

_ONNX = ("onnx", "onnxscript", "onnxruntime")


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
        _check_model(model, described, shown)
        passing = _not_persistent(model)
        expected = {name: shape for name, shape in described.shapes().items() if name not in passing}
        _check_names(file.shapes, expected, shown)
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


def export(thin: nn.Module, path: str | os.PathLike[str], example: Any) -> None:
    """Write a network in eval mode to ``.onnx``, or to ``.pt2``, which needs no model code to be loaded.

    ``example``: a tensor, a tuple or a dict of the model's arguments. The batch (the first dim of the first
    tensor and of those that share its length) is dynamic where the network allows it. The file is run before
    it takes its name, by ONNX Runtime or by PyTorch, and must give the network's output to rounding.

    Raises ``ValueError`` for another suffix and :class:`SlimfastError` where a package is missing, the
    network cannot be exported, the file does not compute the same, or it cannot be written.
    """
    suffix = Path(path).suffix
    if suffix not in (".onnx", ".pt2"):
        raise ArgumentError(f"export: expected a path ending in .onnx or .pt2, got {os.fspath(path)}")
    if suffix == ".onnx":
        missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
        if missing:
            raise SlimfastError(f"export: .onnx needs {', '.join(missing)}: pip install 'slimfast[onnx]'")
    module = copy_with(thin, named_tensors(thin)).eval()
    args, kwargs = arguments(example)
    with torch.no_grad(), PROCESS_LOCK, warnings.catch_warnings():
        # The exporters warn about their own internals.
        warnings.simplefilter("ignore")
        with atomic_path(path) as temporary:
            try:
                program = _exported(module, args, kwargs)
                write = write_onnx if suffix == ".onnx" else _write_pt2
                run = write(program, temporary)
            except (SlimfastError, OSError):
                raise
            except Exception as error:
                raise SlimfastError(
                    f"export: {type(thin).__name__} cannot be exported: {one_line(_first_cause(error))}"
                ) from error
            _check_export(module, program, run, args, kwargs)


def _exported(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Capture the module with a dynamic batch, or with the example's where its code does not allow it."""
    batch = next((t.shape[0] for t in tensors_in((args, kwargs)) if t.ndim), 0)
    # A batch of one would be taken for a broadcast dim and fixed.
    repeats = 2 if batch == 1 else 1

    def repeat(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == batch:
            return leaf.repeat(repeats, *([1] * (leaf.ndim - 1)))
        return leaf

    several = map_leaves(args, repeat), map_leaves(kwargs, repeat)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in tensors_in(several):
        if tensor.ndim and tensor.shape[0] == batch * repeats:
            shapes[tensor] = {0: Dim.AUTO}
    try:
        dynamic = shapes.dynamic_shapes(module, *several)  # type: ignore[no-untyped-call]
        return torch.export.export(module, several[0], several[1], dynamic_shapes=dynamic, strict=False)
    except Exception:
        return torch.export.export(module, args, kwargs, strict=False)


def _write_pt2(program: ExportedProgram, path: Path) -> Run:
    # PyTorch's own writer ends the process where the disk is full, instead of raising.
    archive = io.BytesIO()
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())
    del archive
    loaded = torch.export.load(path).module()
    return lambda args, kwargs: loaded(*args, **kwargs)


def _check_export(
    module: nn.Module, program: ExportedProgram, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check that the written file gives the module's output on the example."""
    expected = [tensor.cpu() for tensor in tensors_in(module(*cloned(args), **cloned(kwargs)))]
    try:
        found = run(cloned(args), cloned(kwargs))
    except Exception as error:
        raise SlimfastError(f"export: the file does not run: {one_line(error)}") from error
    dtype = next((t.dtype for t in expected if t.is_floating_point()), torch.float32)
    tolerance = rounding(module, dtype, len(program.graph.nodes))
    error_found = difference(expected, [tensor.cpu() for tensor in tensors_in(found)])
    if not error_found <= tolerance:
        raise SlimfastError(
            f"export: the file computes something else: off by {error_found:.2g} of the output's size, "
            f"where rounding explains {tolerance:.2g}"
        )


def _first_cause(error: BaseException) -> BaseException:
    """Find what an error was raised from in the first place: the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


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
    if manifest(model).keeps:
        raise SlimfastError(f"{label}: expected a fresh, wide model, got one that is already thin")
    made = _not_persistent(model) - described.keeps.keys()
    _check_tensors(named_tensors(model), described.shapes_before, made, label)
    modules = dict(model.named_modules())
    for patch in described.patches:
        where = f"{label}: {patch.module or 'the model'}: {patch.attribute}"
        if patch.module not in modules:
            raise SlimfastError(f"{where}: expected {patch.before}, got no such module")
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
