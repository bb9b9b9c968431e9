"""More Hugging Face networks from small configurations: language first, then sight and hearing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.small_transformers import TOKENS, image, make, token_ids

Built = tuple[nn.Module, dict[str, Tensor]]

_TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_EXPERTS = {"num_key_value_heads": 2, "use_cache": False}
_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
_TWO_SIDES = {
    "vocab_size": TOKENS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "use_cache": False,
}
_SOUND = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _ids() -> dict[str, Tensor]:
    return {"input_ids": token_ids()}


def _both_ids() -> dict[str, Tensor]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(8)}


def _pixels(size: int = 32) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": image(size)}


def _wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 1600)}


def _network(
    model: str, config: str, options: dict[str, Any], inputs: Callable[[], dict[str, Tensor]] = _ids
) -> Callable[[], Built]:
    return lambda: (make(model, f"{config}Config", **options), inputs())


def _experts(family: str, **options: Any) -> Callable[[], Built]:
    """A decoder of experts, which it computes in the one of transformers' ways that is followed whole."""

    def build() -> Built:
        model, inputs = _decoder(family, **options)()
        experts: Any = model
        experts.set_experts_implementation("batched_mm")
        return model, inputs

    return build


def _decoder(family: str, **options: Any) -> Callable[[], Built]:
    return _network(f"{family}ForCausalLM", family, _TEXT | {"use_cache": False} | options)


_GPT = {"vocab_size": TOKENS, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 8, "use_cache": False}
_NEO = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 8,
    "intermediate_size": 128,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
    "use_cache": False,
}
_MLA = {
    "num_key_value_heads": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_SPARSE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}

LANGUAGE: dict[str, Callable[[], Built]] = {
    "albert": _network("AlbertModel", "Albert", _TEXT | {"embedding_size": 32}),
    "bart": _network("BartForConditionalGeneration", "Bart", _TWO_SIDES, _both_ids),
    "bigbird": _network("BigBirdModel", "BigBird", _TEXT | {"attention_type": "original_full"}),
    "bloom": _network(
        "BloomForCausalLM",
        "Bloom",
        {"vocab_size": TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 8, "use_cache": False},
    ),
    "deberta-v2": _network("DebertaV2Model", "DebertaV2", _TEXT),
    "deepseek-v3": _experts("DeepseekV3", **_MLA, **_SPARSE),
    "electra": _network("ElectraModel", "Electra", _TEXT | {"embedding_size": 32}),
    "falcon": _network(
        "FalconForCausalLM",
        "Falcon",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "use_cache": False,
        },
    ),
    "gemma2": _decoder("Gemma2", num_key_value_heads=2, head_dim=8),
    "gpt-bigcode": _network("GPTBigCodeForCausalLM", "GPTBigCode", _GPT),
    "gpt-j": _network("GPTJForCausalLM", "GPTJ", _GPT | {"rotary_dim": 4}),
    "gpt-neo": _network("GPTNeoForCausalLM", "GPTNeo", _NEO),
    "gpt-neox": _decoder("GPTNeoX"),
    "gpt-oss": _experts(
        "GptOss", num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "longformer": _network("LongformerModel", "Longformer", _TEXT | {"attention_window": 8}),
    "mamba": _network(
        "MambaForCausalLM",
        "Mamba",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "use_cache": False,
        },
    ),
    "marian": _network("MarianMTModel", "Marian", _TWO_SIDES, _both_ids),
    "mixtral": _experts("Mixtral", num_key_value_heads=2, num_local_experts=4),
    "modernbert": _network("ModernBertModel", "ModernBert", _TEXT | {"reference_compile": False}),
    "pegasus": _network("PegasusForConditionalGeneration", "Pegasus", _TWO_SIDES, _both_ids),
    "phi3": _decoder("Phi3", num_key_value_heads=2),
    "qwen3": _decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "qwen3-moe": _experts(
        "Qwen3Moe",
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
    "roberta": _network("RobertaModel", "Roberta", _TEXT),
    "stablelm": _decoder("StableLm", num_key_value_heads=2),
}

SIGHT_AND_HEARING: dict[str, Callable[[], Built]] = {
    "depth-anything": _network(
        "DepthAnythingForDepthEstimation",
        "DepthAnything",
        {
            "backbone_config": {
                "model_type": "dinov2",
                **_VISION,
                "image_size": 32,
                "num_hidden_layers": 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
                "reshape_hidden_states": False,
            },
            "reassemble_hidden_size": 64,
            "patch_size": 8,
            "neck_hidden_sizes": [16, 24, 32, 32],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
        _pixels(),
    ),
    "dinov2": _network("Dinov2Model", "Dinov2", _VISION, _pixels()),
    "dinov3": _network("DINOv3ViTModel", "DINOv3ViT", _VISION, _pixels()),
    "hubert": _network("HubertModel", "Hubert", _SOUND, _wave),
    "mobilevit": _network(
        "MobileViTModel",
        "MobileViT",
        {"image_size": 64, "hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]},
        _pixels(64),
    ),
    "siglip-vision": _network("SiglipVisionModel", "SiglipVision", _VISION, _pixels()),
    "vit-mae": _network("ViTMAEModel", "ViTMAE", _VISION, _pixels()),
    "wav2vec2": _network("Wav2Vec2Model", "Wav2Vec2", _SOUND, _wave),
    "wavlm": _network("WavLMModel", "WavLM", _SOUND, _wave),
}
