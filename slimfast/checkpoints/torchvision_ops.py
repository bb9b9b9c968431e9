"""torchvision beside a PyTorch it was not built for: its models need none of its compiled operators.

``import torchvision`` (and so ``import timm``) fails beside, say, a CPU build of PyTorch, because
torchvision describes operators that its library, which does not load there, would have defined. Defining
them by name, without a body, is enough: networks import and run, and only the detection operators
themselves stay out of reach.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Call before importing torchvision or timm; returns the operators it defined, None for none needed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or hasattr(torch.ops.torchvision, "nms"):
        return None
    folder = Path(spec.submodule_search_locations[0])
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = folder / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                return None
            except OSError:
                break
    # The definitions live as long as this object, which the cache keeps.
    operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        operators.define(schema)  # type: ignore[no-untyped-call]
    return operators
