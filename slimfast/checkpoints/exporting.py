"""Networks in the formats of other runtimes: ``.onnx``, and ``.pt2`` of torch.export."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree

from slimfast.checkpoints.onnx_files import Run, write_onnx
from slimfast.errors import ArgumentError, SlimfastError, one_line
from slimfast.graph.recording.forward import PROCESS_LOCK, tensors_in
from slimfast.graph.recording.inputs import arguments, cloned, map_leaves
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.manifests import manifest
from slimfast.storage.atomic import atomic_path
from slimfast.storage.tensor_documents import KEY

_ONNX = ("onnx", "onnxscript", "onnxruntime")
SUFFIXES = (".onnx", ".pt2")


def export(thin: nn.Module, path: str | os.PathLike[str], example: Any) -> None:
    """Write a network in eval mode to ``.onnx``, or to ``.pt2``, which needs no model code to be loaded.

    The batch (the first dim of the first tensor and of those that share its length) is dynamic where the
    network allows it, and a warning says why where it does not; in ONNX it is named ``batch``, outputs have
    the names that the network gives them, and what was kept of a thin network stands in the metadata as
    ``slimfast``. The file is run before it takes its name, by ONNX Runtime or by PyTorch, and must give the
    network's output to rounding.

    Args:
        thin: The network, thin or not.
        path: The file; its suffix is the format.
        example: A tensor, a tuple or a dict of the model's arguments.

    Raises:
        ValueError: For another suffix.
        SlimfastError: Where a package is missing, the network cannot be exported, the file does not compute
            the same, or it cannot be written.

    Example:
        slimfast.export(thin, "thin.onnx", torch.randn(1, 3, 224, 224))
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ArgumentError(f"export: expected a path ending in .onnx or .pt2, got {os.fspath(path)}")
    if suffix == ".onnx":
        missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
        if missing:
            raise SlimfastError(
                f"export: .onnx needs {', '.join(missing)}: install the extra 'slimfast[onnx]'"
            )
    module = copy_with(thin, named_tensors(thin)).eval()
    args, kwargs = arguments(example)
    with torch.no_grad(), PROCESS_LOCK, warnings.catch_warnings():
        # The exporters warn about their own internals.
        warnings.simplefilter("ignore")
        with atomic_path(path) as temporary:
            try:
                program, fixed = _exported(module, args, kwargs)
                if suffix == ".onnx":
                    names = _output_names(module(*cloned(args), **cloned(kwargs)))
                    run = write_onnx(program, temporary, names, {KEY: manifest(thin).to_json()})
                else:
                    run = _write_pt2(program, temporary)
            except (SlimfastError, OSError):
                raise
            except Exception as error:
                raise SlimfastError(
                    f"export: {type(thin).__name__} cannot be exported: {one_line(_first_cause(error))}"
                ) from error
            _check_export(module, program, run, args, kwargs)
    if fixed:
        warnings.warn(f"export: {os.fspath(path)} takes the example's batch alone: {fixed}", stacklevel=2)


def _exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, str]:
    """Capture the module with a dynamic batch, or with the example's where its code does not allow it.

    Returns the program, and why its batch is the example's; "" where it is dynamic.
    """
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
        program = torch.export.export(module, several[0], several[1], dynamic_shapes=dynamic, strict=False)
    # The network's code may raise anything for sizes that it does not know.
    except Exception as error:
        fixed = one_line(_first_cause(error))
        return torch.export.export(module, args, kwargs, strict=False), fixed
    return program, _fixed_input(program, batch * repeats)


def _fixed_input(program: ExportedProgram, batch: int) -> str:
    """Say of which input the capture has fixed the batch; "" where a length may still change."""
    if program.range_constraints:
        return ""
    given = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = ((name, given.get(name)) for name in program.graph_signature.user_inputs)
    name = next((n for n, t in tensors if isinstance(t, Tensor) and t.ndim and t.shape[0] == batch), None)
    return "" if name is None else f"the network's code fixes the first dim of {name} at {batch}"


def _output_names(output: Any) -> list[str]:
    """Name the tensors of an output: by the key or field that holds each, or ``output``, ``output_1``, ..."""
    leaves, _ = _pytree.tree_flatten_with_path(dict(output) if isinstance(output, Mapping) else output)
    names: list[str] = []
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
            name = ".".join(parts) if path and not parts[0].isdigit() else "output"
            names.append(name if name not in names else f"{name}_{len(names)}")
    return names


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
