"""Networks of ultralytics at their smallest sizes, with random weights: detection, segmentation, poses."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

SIZE = 128
# Class of ultralytics.nn.tasks, then the network's description, by name.
_DESCRIPTIONS = {
    "yolov3-tiny": "DetectionModel",
    "yolov5n": "DetectionModel",
    "yolov8n": "DetectionModel",
    "yolov8n-cls": "ClassificationModel",
    "yolov8n-seg": "SegmentationModel",
    "yolov8n-pose": "PoseModel",
    "yolov8n-obb": "OBBModel",
    "yolov9t": "DetectionModel",
    "yolov10n": "DetectionModel",
    "yolo11n": "DetectionModel",
    "yolo12n": "DetectionModel",
    "yolo26n": "DetectionModel",
    "yolov8n-rtdetr": "RTDETRDetectionModel",
    "rtdetr-l": "RTDETRDetectionModel",
}


def _network(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        prepare_torchvision()
        tasks = importlib.import_module("ultralytics.nn.tasks")
        logging.getLogger("ultralytics").setLevel(logging.ERROR)
        model: nn.Module = getattr(tasks, _DESCRIPTIONS[name])(f"{name}.yaml", verbose=False)
        return model, torch.randn(1, 3, SIZE, SIZE)

    return build


NETWORKS = {name: _network(name) for name in _DESCRIPTIONS}
