"""Networks that hear and speak: of torchaudio, and of transformers from small configurations."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, Any]

# The module of torchaudio that loads its compiled library.
_EXTENSION = "torchaudio._extension"


@functools.cache
def prepare_torchaudio() -> None:
    """Make torchaudio importable beside a PyTorch that its compiled library was not built for.

    Its models need nothing of that library, so a stand-in that says it is absent takes the loader's place.
    """
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or "torchaudio" in sys.modules:
        return
    try:
        importlib.import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        absent: Any = types.ModuleType(_EXTENSION)
        absent._IS_TORCHAUDIO_EXT_AVAILABLE = absent._IS_ALIGN_AVAILABLE = False
        absent.fail_if_no_align = lambda function: function
        sys.modules[_EXTENSION] = absent


def _network(maker: Callable[[Any], nn.Module], inputs: Callable[[], Any]) -> Callable[[], Built]:
    def build() -> Built:
        prepare_torchaudio()
        return maker(importlib.import_module("torchaudio.models")), inputs()

    return build


def _lengths(*lengths: int) -> torch.Tensor:
    return torch.tensor(lengths)


_WAV2VEC = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(32, 10, 5), (32, 3, 2), (32, 2, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 64,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 128,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": 20,
}

NETWORKS: dict[str, Callable[[], Built]] = {
    "Conformer": _network(
        lambda models: models.Conformer(
            input_dim=32, num_heads=4, ffn_dim=64, num_layers=2, depthwise_conv_kernel_size=7
        ),
        lambda: (torch.randn(2, 20, 32), _lengths(20, 12)),
    ),
    "ConvTasNet": _network(
        lambda models: models.ConvTasNet(
            num_sources=2,
            enc_num_feats=64,
            msk_num_feats=32,
            msk_num_hidden_feats=64,
            msk_num_layers=3,
            msk_num_stacks=2,
        ),
        lambda: torch.randn(1, 1, 800),
    ),
    "DeepSpeech": _network(
        lambda models: models.DeepSpeech(n_feature=32, n_hidden=64, n_class=20),
        lambda: torch.randn(1, 1, 20, 32),
    ),
    "Emformer": _network(
        lambda models: models.Emformer(
            input_dim=32, num_heads=4, ffn_dim=64, num_layers=2, segment_length=4, right_context_length=1
        ),
        lambda: (torch.randn(1, 13, 32), _lengths(13)),
    ),
    "HDemucs": _network(
        lambda models: models.HDemucs(sources=["a", "b"], audio_channels=2, channels=8, nfft=1024, depth=4),
        lambda: torch.randn(1, 2, 8192),
    ),
    "Tacotron2": _network(
        lambda models: models.Tacotron2(
            n_mels=16,
            encoder_embedding_dim=32,
            encoder_n_convolution=2,
            attention_rnn_dim=48,
            attention_hidden_dim=24,
            decoder_rnn_dim=48,
            prenet_dim=16,
            postnet_n_convolution=3,
            postnet_embedding_dim=32,
            symbol_embedding_dim=32,
        ),
        lambda: (torch.randint(0, 100, (1, 10)), _lengths(10), torch.randn(1, 16, 12), _lengths(12)),
    ),
    "Wav2Letter": _network(
        lambda models: models.Wav2Letter(num_classes=20, input_type="mfcc", num_features=13),
        lambda: torch.randn(1, 13, 60),
    ),
    "WaveRNN": _network(
        lambda models: models.WaveRNN(
            upsample_scales=[2, 2, 2],
            n_classes=32,
            hop_length=8,
            n_res_block=2,
            n_rnn=48,
            n_fc=48,
            n_freq=16,
            n_hidden=24,
            n_output=24,
        ),
        lambda: (torch.randn(1, 1, 48), torch.randn(1, 1, 16, 10)),
    ),
    "wav2vec2": _network(lambda models: models.wav2vec2_model(**_WAV2VEC), lambda: torch.randn(1, 1600)),
}
