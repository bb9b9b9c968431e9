"""Decoders of known sizes, and shards of random weights of their shapes, written one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path
from slimfast.storage.safetensors_writer import write_tensors
from slimfast.storage.weights import open_weights

INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Decoder:
    """A Llama decoder's sizes (https://huggingface.co/meta-llama/Meta-Llama-3-8B, config.json, for "8b")."""

    blocks: int
    hidden: int = 4096
    intermediate: int = 14336
    key_values: int = 1024
    vocabulary: int = 128256
    tied: bool = False

    def shards(self) -> Iterator[dict[str, Shape]]:
        """Name -> shape of the tensors of each file: the embedding, the blocks one by one, the head."""
        yield {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for i in range(self.blocks):
            block, wide, small = f"model.layers.{i}", self.hidden, self.key_values
            yield {
                f"{block}.input_layernorm.weight": (wide,),
                f"{block}.self_attn.q_proj.weight": (wide, wide),
                f"{block}.self_attn.k_proj.weight": (small, wide),
                f"{block}.self_attn.v_proj.weight": (small, wide),
                f"{block}.self_attn.o_proj.weight": (wide, wide),
                f"{block}.post_attention_layernorm.weight": (wide,),
                f"{block}.mlp.gate_proj.weight": (self.intermediate, wide),
                f"{block}.mlp.up_proj.weight": (self.intermediate, wide),
                f"{block}.mlp.down_proj.weight": (wide, self.intermediate),
            }
        head: dict[str, Shape] = {} if self.tied else {"lm_head.weight": (self.vocabulary, self.hidden)}
        yield {"model.norm.weight": (self.hidden,), **head}


SIZES = {
    "8b": Decoder(32),
    "1b": Decoder(1, tied=True),
    # One block's shapes, divided by 16: to try the benchmark itself.
    "tiny": Decoder(2, 256, 896, 64, 8016),
}
# What the two roads are compared on, for it fits in memory anywhere.
FITS = Decoder(8, 1024, 2816, 256, 8192, tied=True)


def generate(decoder: Decoder, folder: Path) -> Path:
    """The index of a decoder's shards in ``folder``; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    weight_map: dict[str, str] = {}
    for i, shapes in enumerate(decoder.shards()):
        file = f"model-{i:05d}.safetensors"
        weight_map |= dict.fromkeys(shapes, file)
        if not _holds(folder / file, shapes):
            announced = {name: (shape, torch.bfloat16) for name, shape in shapes.items()}
            write_tensors(folder / file, announced, ((n, _weight(n, s)) for n, s in shapes.items()))
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps({"weight_map": weight_map}))
    return index


def _holds(path: Path, shapes: dict[str, Shape]) -> bool:
    try:
        return {name: info.shape for name, info in open_weights(path).infos.items()} == shapes
    except SlimfastError:
        return False


def _weight(name: str, shape: Shape) -> Tensor:
    """Gaussian entries whose columns fall off in size, seeded by the name: spectra that are not flat."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(1, shape[-1] + 1, dtype=torch.float32) ** -0.25
    weight = torch.empty(shape, dtype=torch.bfloat16)
    # A slice at a time, in float32: the largest tensor is 1 GB.
    for start in range(0, shape[0], 4096):
        rows = weight[start : start + 4096]
        rows.copy_(torch.randn(rows.shape, generator=generator) * (columns if len(shape) > 1 else 1.0))
    return weight
