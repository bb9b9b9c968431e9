"""Ranks of adapters, of which a configuration has one number for all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import slimfast
from slimfast.graph import trace_channels


@dataclass
class LoraConfig:
    r: int = 8


class Lora(nn.Module):
    """A layer with an adapter, as peft has it: the rank by the adapter's name."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.r, self.scaling = base, {"default": rank}, {"default": 16 / rank}
        self.lora_a = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_b = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x):
        return self.base(x) + self.lora_b["default"](self.lora_a["default"](x)) * self.scaling["default"]


class Adapted(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.peft_config = {"default": LoraConfig()}
        self.layers = nn.Sequential(*(Lora(nn.Linear(16, 16), 8) for _ in range(layers)), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


def test_the_rank_of_one_adapter_follows_in_the_layer_and_in_the_configuration():
    model, x = Adapted(1).eval(), torch.randn(3, 16)
    thin = slimfast.slim(model, x, overrides={"layers.0.lora_a.default": 5})
    assert (thin.layers[0].r, thin.peft_config["default"].r) == ({"default": 5}, 5)
    assert model.peft_config["default"].r == 8


def test_ranks_that_a_configuration_has_one_number_for_are_left_whole_with_the_reason():
    graph = trace_channels(Adapted(2).eval(), torch.randn(3, 16))
    assert not [group.name for group in graph if "lora_a" in group.name]
    (reason,) = {f.reason for f in graph.frozen if "lora_a.default" in f.tensor and f.dim == 0}
    assert reason == "peft_config.default.r = 8 is the rank of several layers at once"
