"""A language model of random weights, its tokens and a text as the benchmarks of decoders read them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

ARTICLE = " = {0} = \n \n {0} is a word . \n = = Of it = = \n \n It has {0} letters , as a b c d e f g h . \n"
TEXT = " \n" + "".join(ARTICLE.format(word) for word in ("One", "Two", "Three", "Four", "Five", "Six"))


def encode(text: str) -> list[int]:
    """A word's token is its length."""
    return [len(word) for word in text.split()]


def decode(tokens: list[int]) -> str:
    """A token's word is its digits."""
    return " ".join(map(str, tokens))


def small_llama() -> Any:
    """Four layers with two key-value heads, whose vocabulary holds all tokens of :func:`encode`."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
        max_position_embeddings=64,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


def write_texts(folder: Path) -> None:
    """Write both splits and their sums where the benchmarks look for them below ``folder``."""
    place = folder / "wikitext2"
    place.mkdir()
    sums = []
    for split in ("valid", "test"):
        (place / f"wiki.{split}.raw").write_text(TEXT)
        sums.append(f"{hashlib.sha256(TEXT.encode()).hexdigest()}  wiki.{split}.raw")
    (place / "SHA256SUMS").write_text("\n".join(sums) + "\n")
