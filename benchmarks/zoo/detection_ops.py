"""torchvision's detectors beside a PyTorch that its compiled operations were not built for.

Networks need ``nms`` and ``roi_align`` to run. Where torchvision's own library does not load, plain Python
stands in for the two, so that detectors can be traced, timed and compared with themselves; what it samples at
the border of an image is not torchvision's to the bit. Only a process of its own should do this: it changes
torchvision.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np
import torch
from torch import Tensor

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
# Points along a side of each cell, where the caller leaves that open.
_POINTS = 2


@functools.cache
def prepare_detection_ops() -> torch.library.Library | None:
    """Import torchvision with operations that run; returns those that were made, None for none needed."""
    prepare_torchvision()
    extension = importlib.import_module("torchvision.extension")
    if extension._has_ops():
        return None
    # The definitions live as long as this object, which the cache keeps.
    operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    operators.define(_ROI_ALIGN)  # type: ignore[no-untyped-call]
    operators.impl("nms", non_maximum_suppression, "CPU")  # type: ignore[no-untyped-call]
    operators.impl("roi_align", roi_align, "CPU")  # type: ignore[no-untyped-call]
    operators.impl("roi_align", _roi_align_shape, "Meta")  # type: ignore[no-untyped-call]
    for name in ("boxes", "roi_align"):
        module = importlib.import_module(f"torchvision.ops.{name}")
        vars(module).update(_assert_has_ops=lambda: None, _has_ops=lambda: True)
    return operators


def non_maximum_suppression(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Choose boxes (x1, y1, x2, y2) from the highest score down, none that overlaps a chosen one too far."""
    order = scores.argsort(descending=True, stable=True)
    boxes, left, chosen = dets[order].numpy(), np.arange(len(dets)), []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(left):
        best, left = left[0], left[1:]
        chosen.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        sides = np.maximum(np.minimum(boxes[best, 2:], boxes[left, 2:]) - low, 0)
        common = sides[:, 0] * sides[:, 1]
        left = left[common <= iou_threshold * (area[best] + area[left] - common)]
    return order[torch.tensor(np.array(chosen, dtype=np.int64), device=dets.device)]


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average samples in the cells of a grid over each region (image, x1, y1, x2, y2)."""
    points = sampling_ratio if sampling_ratio > 0 else _POINTS
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    low, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    lengths = torch.tensor(input.shape[:1:-1], dtype=input.dtype, device=input.device)
    x, y = (
        (torch.arange(n * points, dtype=input.dtype, device=input.device) + 0.5) / (n * points)
        for n in (pooled_width, pooled_height)
    )
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
    places = low[:, None, None] + size[:, None, None] * grid
    normed = (2 * places + 1) / lengths - 1
    rows, columns = pooled_height * points, pooled_width * points
    sampled = input.new_empty((len(rois), input.shape[1], rows, columns))
    for image in range(len(input)):
        mine = rois[:, 0] == image
        one = torch.nn.functional.grid_sample(
            input[image : image + 1],
            normed[mine].reshape(1, -1, columns, 2),
            padding_mode="border",
            align_corners=False,
        )
        sampled[mine] = one[0].reshape(input.shape[1], -1, rows, columns).transpose(0, 1)
    return torch.nn.functional.avg_pool2d(sampled, points)


def _roi_align_shape(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Say how large the result is."""
    return input.new_empty((rois.shape[0], input.shape[1], pooled_height, pooled_width))
