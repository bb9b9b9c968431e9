"""Thin transformers as folders that the Hugging Face hub's own classes load, with no slimfast anywhere.

A stock class builds its layers from its configuration, so it can only hold a network that is equally wide in
all of them; :func:`slimfast.plan_uniform` makes plans for such ones.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimfast.arrays import Arguments
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line
from slimfast.graph.recording.inputs import arguments, cloned, map_leaves, tensors_in
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.huggingface.config_search import find_config
from slimfast.huggingface.stock import built_without_data, unsaved_buffers
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.manifests import manifest
from slimfast.storage.atomic import cannot_write


def save_pretrained(thin: nn.Module, folder: str | os.PathLike[str], example: Any) -> None:
    """Write a thin transformer to a folder for ``from_pretrained`` of its stock class, and of ``AutoModel``.

    Before the folder takes its name the stock class loads it, every tensor must be the thin network's, and so
    must the output on ``example``, to rounding.

    Args:
        thin: A ``transformers.PreTrainedModel`` pruned by a plan of :func:`slimfast.plan_uniform`, or by any
            that leaves its layers equally wide.
        folder: It must not exist, or be empty.
        example: A tensor, a tuple or a dict of its arguments.

    Raises:
        TypeError: For what is no transformer.
        SlimfastError: Where no configuration of the class describes the thin network, and where the folder
            cannot be written.

    Example:
        slimfast.save_pretrained(thin, "thin", example)
        transformers.AutoModel.from_pretrained("thin")
    """
    if not hasattr(thin, "save_pretrained") or not hasattr(thin, "config"):
        raise ArgumentTypeError(f"save_pretrained: expected a transformers model, got {type(thin).__name__}")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise cannot_write(folder, "it is there already, and not an empty folder")
    described = manifest(thin)
    found = find_config(
        thin,
        described.shapes_before,
        described.patches,
        [arguments(example)],
        buffers=unsaved_buffers(thin),
    )
    if found.config is None:
        raise SlimfastError(
            f"save_pretrained: {found.why}; layers of the same kind must be equally wide, as "
            f"slimfast.plan_uniform plans them"
        )
    if hasattr(found.config, "quantization_config"):
        # The weights came from few bits, as of a GGUF file, and are of the thin network's dtype now.
        found.config.__dict__.pop("quantization_config")
    stock = built_without_data(thin, found.config)
    assert stock is not None, "it was built when it was found"
    stock.load_state_dict(thin.state_dict(), assign=True, strict=False)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        stock.save_pretrained(beside)  # type: ignore[operator]
        _check(thin, beside, arguments(example))
        beside.replace(target)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(thin: nn.Module, folder: Path, inputs: Arguments) -> None:
    """Check that what the stock class loads from the folder is the thin network."""
    loaded: nn.Module = type(thin).from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    found = named_tensors(loaded)
    for name, tensor in named_tensors(thin).items():
        if not torch.equal(found[name].detach().cpu(), tensor.detach().cpu()):
            raise SlimfastError(f"save_pretrained: the stock class holds other values in {name}")
    alike = copy_with(thin, named_tensors(thin)).eval()
    device = next(iter(named_tensors(thin).values())).device
    args, kwargs = (
        map_leaves(a, lambda t: t.to(device) if isinstance(t, torch.Tensor) else t) for a in inputs
    )
    with torch.no_grad():
        expected = alike(*cloned(args), **cloned(kwargs))
        try:
            got = loaded.to(device).eval()(*cloned(args), **cloned(kwargs))
        except Exception as failure:
            raise SlimfastError(
                f"save_pretrained: the stock {type(thin).__name__} fails with these widths (a plan with "
                f"multiple_of=16 may help): {one_line(failure)}"
            ) from failure
    floating = [t.dtype for t in tensors_in(expected) if t.is_floating_point()]
    limit = rounding(thin, floating[0] if floating else torch.float32, 1000)
    error = difference(_tensors(expected), _tensors(got))
    if not error <= limit:
        raise SlimfastError(
            f"save_pretrained: the stock {type(thin).__name__} computes something else: off by {error:.2g}, "
            f"of which rounding explains {limit:.2g}"
        )


def _tensors(output: Any) -> list[torch.Tensor]:
    return list(tensors_in(output))
