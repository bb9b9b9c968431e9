"""Thin networks in files: safetensors with the manifest in its header, no pickle, whole or not at all."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from slimfast.checkpoints.exporting import Run, write_onnx
from slimfast.distributed.dtensors import gathered, is_part
from slimfast.errors import SlimfastError
from slimfast.graph.cutting.patches import Shape, read_attribute
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.inputs import arguments, map_leaves
from slimfast.graph.recording.module_copies import aliases, copy_with, named_tensors
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.pruning.verification import difference, rounding
from slimfast.storage.atomic import atomic_path, check_file

_log = logging.getLogger(__name__)

_KEY = "slimfast"
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def save(thin: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network, thin or not, to a ``.safetensors`` file: its tensors and what :func:`load` needs to
    cut.

    Parameters and persistent buffers are stored in their dtype, tied ones once. The file is written beside
    and then renamed. A network that FSDP has sharded is gathered, for which all its processes make the call;
    the first one writes. Raises :class:`SlimfastError` where it cannot be written, or the network holds what
    it cannot store.
    """
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
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata={_KEY: described.to_json()})


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """The network in a file of :func:`save`: a copy of the fresh, wide ``model`` cut to fit, with the file's
    tensors.

    Nothing is traced and ``model`` is untouched. Tensors have the dtype they were stored in and the device
    they have in ``model`` (the CPU where that is "meta"); mode and ``requires_grad`` are the model's. Buffers
    that are not persistent are cut from the model's own.

    Raises :class:`SlimfastError` naming the tensor or the attribute for whatever does not match.
    """
    shown = os.fspath(path)
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise SlimfastError(f"{shown}: not written by slimfast: its metadata has no {_KEY!r} entry")
            described = Manifest.from_json(metadata[_KEY], what=f"{shown}: manifest")
            _check_model(model, described, shown)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            passing = _not_persistent(model)
            expected = {name: shape for name, shape in described.shapes().items() if name not in passing}
            _check_names({name: tuple(part.get_shape()) for name, part in slices.items()}, expected, shown)
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise SlimfastError(f"cannot read {shown}: {reason}") from None
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
        raise ValueError(f"export: expected a path ending in .onnx or .pt2, got {os.fspath(path)}")
    if suffix == ".onnx":
        missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
        if missing:
            raise SlimfastError(f"export: .onnx needs {', '.join(missing)}: pip install 'slimfast[onnx]'")
    module = copy_with(thin, named_tensors(thin)).eval()
    args, kwargs = arguments(example)
    with torch.no_grad(), warnings.catch_warnings():
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
                    f"export: {type(thin).__name__} cannot be exported: {_first_line(_first_cause(error))}"
                ) from error
            _check_export(module, program, run, args, kwargs)


def _exported(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """The module captured with a dynamic batch, or with the example's where its code does not allow it."""
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
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda args, kwargs: loaded(*args, **kwargs)


def _check_export(
    module: nn.Module, program: ExportedProgram, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """The written file must give the module's output on the example."""
    expected = [tensor.cpu() for tensor in tensors_in(module(*args, **kwargs))]
    try:
        found = run(args, kwargs)
    except Exception as error:
        raise SlimfastError(f"export: the file does not run: {_first_line(error)}") from error
    dtype = next((t.dtype for t in expected if t.is_floating_point()), torch.float32)
    tolerance = rounding(module, dtype, len(program.graph.nodes))
    error_found = difference(expected, [tensor.cpu() for tensor in tensors_in(found)])
    if not error_found <= tolerance:
        raise SlimfastError(
            f"export: the file computes something else: off by {error_found:.2g} of the output's size, "
            f"where rounding explains {tolerance:.2g}"
        )


def _first_cause(error: BaseException) -> BaseException:
    """What an error was raised from in the first place: the exporter wraps it in pages of advice."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _check_tensors(
    present: Mapping[str, Tensor], expected: Mapping[str, Shape], made: set[str], what: str
) -> None:
    """Likewise, but for buffers that are ``made`` by a forward as it needs them: neither stored nor cut."""
    _check_names(
        {name: tuple(tensor.shape) for name, tensor in present.items() if name not in made},
        {name: shape for name, shape in expected.items() if name not in made},
        what,
    )


def _check_names(present: Mapping[str, Shape], expected: Mapping[str, Shape], what: str) -> None:
    """One line naming the first tensor that is missing, has another shape, or should not be there."""
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
    """The buffers that a state dict leaves out under all of their names."""
    names: set[str] = set()
    persistent: set[str] = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            (names if name in module._non_persistent_buffers_set else persistent).add(full)
    first = aliases(model)
    return {first.get(n, n) for n in names} - {first.get(n, n) for n in persistent}
