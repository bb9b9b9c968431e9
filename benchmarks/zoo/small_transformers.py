"""Hugging Face networks from small configurations, every kind of block in them twice."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

Built = tuple[nn.Module, dict[str, Tensor]]

TOKENS, LENGTH, IMAGE = 256, 16, 32
_TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "image_size": IMAGE,
    "patch_size": 8,
}
_GPT = {"vocab_size": TOKENS, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 8}
_QUIET = {"use_cache": False}


def make(model: str, config: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    transformers = importlib.import_module("transformers")
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return made


def token_ids(length: int = LENGTH) -> Tensor:
    ids = torch.randint(0, TOKENS, (1, length))
    # What is recorded of integers is their range, which is to be the whole vocabulary.
    ids[0, 0], ids[0, 1] = 0, TOKENS - 1
    return ids


def image(size: int = IMAGE) -> Tensor:
    return torch.randn(1, 3, size, size)


def _text(model: str, config: str, **options: Any) -> Callable[[], Built]:
    return lambda: (make(model, config, **_TEXT | options), {"input_ids": token_ids()})


def _decoder(family: str, **options: Any) -> Callable[[], Built]:
    return _text(f"{family}ForCausalLM", f"{family}Config", num_key_value_heads=2, **_QUIET, **options)


def _distilbert() -> Built:
    options = {"vocab_size": TOKENS, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 8}
    return make("DistilBertModel", "DistilBertConfig", **options), {"input_ids": token_ids()}


def _opt() -> Built:
    options = _TEXT | {"ffn_dim": 128, "word_embed_proj_dim": 64} | _QUIET
    del options["intermediate_size"]
    return make("OPTForCausalLM", "OPTConfig", **options), {"input_ids": token_ids()}


def _t5() -> Built:
    options = {"vocab_size": TOKENS, "d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 2, "num_heads": 8}
    model = make("T5ForConditionalGeneration", "T5Config", **options, **_QUIET)
    return model, {"input_ids": token_ids(), "decoder_input_ids": token_ids(8)}


def _swin() -> Built:
    options = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "window_size": 4}
    model = make("SwinForImageClassification", "SwinConfig", **options, depths=[2, 2], num_heads=[4, 8])
    return model, {"pixel_values": image(64)}


def _clip() -> Built:
    text, vision = _TEXT | {"eos_token_id": TOKENS - 1}, _VISION
    model = make("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=32)
    return model, {"input_ids": token_ids(), "pixel_values": image()}


def _whisper() -> Built:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", 2), ("attention_heads", 8), ("ffn_dim", 128))}  # fmt: skip
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    options = {"vocab_size": TOKENS, "d_model": 64, "num_mel_bins": 16, "max_source_positions": 32}
    model = make("WhisperForConditionalGeneration", "WhisperConfig", **options, **sides, **tokens, **_QUIET)
    return model, {"input_features": torch.randn(1, 16, 64), "decoder_input_ids": token_ids(8)}


def _segformer() -> Built:
    options = {"hidden_sizes": [16, 32, 40, 64], "depths": [2, 2, 2, 2], "num_attention_heads": [1, 2, 4, 8]}
    model = make("SegformerForSemanticSegmentation", "SegformerConfig", **options, decoder_hidden_size=64)
    return model, {"pixel_values": image(64)}


def _detr() -> Built:
    prepare_torchvision()
    transformers = importlib.import_module("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", 2), ("attention_heads", 8), ("ffn_dim", 128))}  # fmt: skip
    options = {"use_timm_backbone": False, "backbone": None, "backbone_config": backbone, "num_queries": 10}
    model = make("DetrForObjectDetection", "DetrConfig", d_model=64, **options, **sides)
    return model, {"pixel_values": image(64), "pixel_mask": torch.ones(1, 64, 64, dtype=torch.int64)}


NETWORKS: dict[str, Callable[[], Built]] = {
    "bert": _text("BertForMaskedLM", "BertConfig"),
    "distilbert": _distilbert,
    "gpt2": lambda: (make("GPT2LMHeadModel", "GPT2Config", **_GPT, **_QUIET), {"input_ids": token_ids()}),
    "opt": _opt,
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "gemma": _decoder("Gemma", head_dim=8),
    "phi": _decoder("Phi"),
    "t5": _t5,
    "vit": lambda: (make("ViTForImageClassification", "ViTConfig", **_VISION), {"pixel_values": image()}),
    "swin": _swin,
    "clip": _clip,
    "whisper": _whisper,
    "segformer": _segformer,
    "detr": _detr,
}
