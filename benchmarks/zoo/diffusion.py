"""Networks of diffusers from small configurations: what denoises, and what encodes and decodes images."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

Built = tuple[nn.Module, dict[str, Any]]

_LATENT = {"sample_size": 16, "in_channels": 4, "out_channels": 4}
_BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def _network(name: str, inputs: Callable[[], dict[str, Any]], **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        prepare_torchvision()
        model: nn.Module = getattr(importlib.import_module("diffusers"), name)(**options)
        return model, inputs() | {"return_dict": False}

    return build


def _latent(channels: int = 4, size: int = 16) -> Tensor:
    return torch.randn(1, channels, size, size)


def _step() -> Tensor:
    return torch.tensor([10])


def _states(length: int, width: int) -> Tensor:
    return torch.randn(1, length, width)


def _image(size: int = 32) -> dict[str, Any]:
    return {"sample": torch.randn(1, 3, size, size)}


NETWORKS: dict[str, Callable[[], Built]] = {
    "UNet2DModel": _network(
        "UNet2DModel",
        lambda: {"sample": _latent(3, 32), "timestep": _step()},
        sample_size=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **_BLOCKS,
    ),
    "UNet2DConditionModel": _network(
        "UNet2DConditionModel",
        lambda: {"sample": _latent(), "timestep": _step(), "encoder_hidden_states": _states(6, 32)},
        cross_attention_dim=32,
        attention_head_dim=4,
        **_LATENT,
        **_BLOCKS,
        **_UNET_BLOCKS,
    ),
    "ControlNetModel": _network(
        "ControlNetModel",
        lambda: {
            "sample": _latent(),
            "timestep": _step(),
            "encoder_hidden_states": _states(6, 32),
            "controlnet_cond": torch.randn(1, 3, 128, 128),
        },
        in_channels=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=_UNET_BLOCKS["down_block_types"],
        conditioning_embedding_out_channels=(8, 16, 24, 32),
        **_BLOCKS,
    ),
    "AutoencoderKL": _network(
        "AutoencoderKL",
        _image,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **_BLOCKS,
    ),
    "AutoencoderTiny": _network(
        "AutoencoderTiny", _image, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4
    ),
    "VQModel": _network(
        "VQModel",
        _image,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=64,
        **_BLOCKS,
    ),
    "DiTTransformer2DModel": _network(
        "DiTTransformer2DModel",
        lambda: {"hidden_states": _latent(), "timestep": _step(), "class_labels": torch.tensor([3])},
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=100,
    ),
    "PixArtTransformer2DModel": _network(
        "PixArtTransformer2DModel",
        lambda: {
            "hidden_states": _latent(),
            "encoder_hidden_states": _states(6, 32),
            "timestep": _step(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        cross_attention_dim=64,
        caption_channels=32,
    ),
    "SD3Transformer2DModel": _network(
        "SD3Transformer2DModel",
        lambda: {
            "hidden_states": _latent(),
            "encoder_hidden_states": _states(6, 32),
            "pooled_projections": torch.randn(1, 24),
            "timestep": _step(),
        },
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=16,
    ),
    "FluxTransformer2DModel": _network(
        "FluxTransformer2DModel",
        lambda: {
            "hidden_states": _states(16, 4),
            "encoder_hidden_states": _states(6, 32),
            "pooled_projections": torch.randn(1, 24),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(6, 3),
        },
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
    ),
    "SanaTransformer2DModel": _network(
        "SanaTransformer2DModel",
        lambda: {"hidden_states": _latent(), "encoder_hidden_states": _states(6, 32), "timestep": _step()},
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=16,
    ),
    "WanTransformer3DModel": _network(
        "WanTransformer3DModel",
        lambda: {
            "hidden_states": torch.randn(1, 4, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": _states(6, 32),
        },
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
    ),
}
