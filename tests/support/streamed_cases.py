"""Networks in memory and the same in shards, with samples of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from support.pruning_cases import ConvNet
from support.shard_cases import write_shards

MEMORY = 20_000


class Decoder(nn.Module):
    """Tokens through attention of its own and PyTorch's, gates, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.register_buffer("positions", torch.randn(1, 20, 16), persistent=False)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.mix, self.back = nn.Linear(16, 12), nn.Linear(12, 16)
        self.head = nn.Linear(16, 30, bias=False)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hide = None if attention_mask is None else attention_mask == 0
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1]]
        y = self.norm(x)
        x = x + self.attend(y, y, y, key_padding_mask=hide, need_weights=False)[0]
        x = x + self.down(self.gate(x).sigmoid() * self.up(x))
        for _ in range(2):
            x = x + self.back(self.mix(x).relu())
        return self.head(x)


def tokens() -> list[dict[str, Tensor]]:
    """Three batches of two lengths, with padding."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for count, length in ((5, 12), (6, 12), (4, 17)):
        ends = torch.randint(3, length, (count, 1), generator=generator)
        drawn = torch.randint(30, (count, length), generator=generator)
        batches.append({"tokens": drawn, "attention_mask": (torch.arange(length) < ends).long()})
    return batches


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, 8, 8, generator=generator) for count in (7, 4)]


class Case:
    """A network in memory, the same in shards, and samples of it."""

    def __init__(self, folder: Path, kind: type[nn.Module], batches: list[Any]) -> None:
        torch.manual_seed(0)
        self.model, self.batches = kind().eval(), batches
        with slimfast.without_weights():
            torch.manual_seed(0)
            self.empty = kind().eval()
        for name, buffer in self.model.named_buffers():
            self.empty.get_buffer(name).copy_(buffer)
        (folder / "wide").mkdir()
        self.index = write_shards(folder / "wide", self.model.state_dict())
        example = batches[0]
        self.example = {"tokens": example["tokens"][:1]} if isinstance(example, dict) else example[:1]
        self.graph = slimfast.trace_channels(self.empty, self.example)

    def in_memory(self, **options: Any) -> slimfast.Calibration:
        graph = slimfast.trace_channels(self.model, self.example)
        return slimfast.calibrate(self.model, graph, self.batches, memory=MEMORY, **options)

    def from_shards(self, folder: Path, **options: Any) -> slimfast.Calibration:
        options = {"memory": MEMORY, "batches": self.batches, **options}
        return slimfast.calibrate_checkpoint(self.index, self.empty, self.graph, folder=folder, **options)


@pytest.fixture(params=[(ConvNet, images), (Decoder, tokens)], ids=["convnet", "decoder"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """One of two kinds of networks."""
    kind, batches = request.param
    return Case(tmp_path, kind, batches())
