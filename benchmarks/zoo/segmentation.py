"""Networks that label pixels and voxels, of segmentation_models_pytorch and MONAI, with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

Built = tuple[nn.Module, Tensor]


def _planar(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        prepare_torchvision()
        library = importlib.import_module("segmentation_models_pytorch")
        model: nn.Module = getattr(library, name)(encoder, encoder_weights=None, classes=5, **options)
        return model, torch.randn(1, 3, 128, 128)

    return build


def _medical(name: str, *shape: int, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        model: nn.Module = getattr(importlib.import_module("monai.networks.nets"), name)(**options)
        return model, torch.randn(1, *shape)

    return build


PLANAR: dict[str, Callable[[], Built]] = {
    **{
        name: _planar(name)
        for name in (
            "Unet",
            "UnetPlusPlus",
            "MAnet",
            "Linknet",
            "FPN",
            "PSPNet",
            "DeepLabV3",
            "DeepLabV3Plus",
            "PAN",
            "UPerNet",
        )
    },
    "Segformer": _planar("Segformer", "mit_b0"),
    "Unet-mobilenet_v2": _planar("Unet", "mobilenet_v2"),
    "Unet-efficientnet-b0": _planar("Unet", "efficientnet-b0"),
}

_VOLUME = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
MEDICAL: dict[str, Callable[[], Built]] = {
    "UNet": _medical(
        "UNet", 1, 32, 32, 32, **_VOLUME, channels=(16, 32, 64), strides=(2, 2), num_res_units=2
    ),
    "BasicUNet": _medical("BasicUNet", 1, 32, 32, 32, **_VOLUME, features=(16, 16, 32, 64, 64, 16)),
    "AttentionUnet": _medical(
        "AttentionUnet", 1, 32, 32, 32, **_VOLUME, channels=(16, 32, 64), strides=(2, 2)
    ),
    "DynUNet": _medical(
        "DynUNet",
        1,
        32,
        32,
        32,
        **_VOLUME,
        kernel_size=(3, 3, 3),
        strides=(1, 2, 2),
        upsample_kernel_size=(2, 2),
    ),
    "SegResNet": _medical("SegResNet", 1, 32, 32, 32, **_VOLUME, init_filters=8),
    "VNet": _medical("VNet", 1, 32, 32, 32, **_VOLUME),
    "UNETR": _medical(
        "UNETR",
        1,
        32,
        32,
        32,
        in_channels=1,
        out_channels=3,
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=96,
        mlp_dim=192,
        num_heads=4,
    ),
    "SwinUNETR": _medical("SwinUNETR", 1, 64, 64, 64, in_channels=1, out_channels=3, feature_size=12),
}
