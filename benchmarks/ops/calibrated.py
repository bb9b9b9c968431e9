"""The road that keeps accuracy: moments, error curves and repair, in units of a forward of the same samples.

All of it is processor time, so that other work on the machine does not count. Weights are random, but batch
norms have the statistics that a training leaves. What a PyTorch user would write for the moments stands
beside ours.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import slimfast
from benchmarks.roofline import Roofline
from benchmarks.timing import OURS, Case, Row, Run, Target
from slimfast.calibration.consumers import Consumer, consumers_of, input_of
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

OP = "calibrated"
FORWARD, PLAIN = "forward", "torch"
COLUMNS = {"cpu": (FORWARD, PLAIN), "gpu": (FORWARD, PLAIN)}

# Samples, and what each is: the side of an image, or a number of tokens.
NETWORKS = {
    "resnet50": (64, 224),
    "vit_tiny_patch16_224": (64, 224),
    "vit_base_patch16_224": (64, 224),
    "convnext_tiny": (64, 224),
    "decoder 135M": (64, 128),
}
BATCH = 16
MACS = 0.5
# A stage's processor time is to be at most so many forwards.
CALIBRATE, PLAN, PRUNE, TOGETHER = "calibrate", "plan", "prune and repair", "together"
GOALS = {CALIBRATE: 1.3, PLAN: 3.2, PRUNE: 2.5, TOGETHER: 7.0}


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """A network with samples, and the forward of all of them."""

    model: nn.Module
    example: Any
    batches: list[Any]

    @torch.no_grad()
    def forward(self) -> None:
        for batch in self.batches:
            if isinstance(batch, dict):
                self.model(**batch)
            else:
                self.model(batch)


def rows(suite: str) -> tuple[Row, ...]:
    """Every stage of every network, and all of them together."""
    return tuple(
        Row(f"{name}: {stage}", (name, stage), (Target(FORWARD, 1 / goal),), quick=name == "resnet50")
        for name in NETWORKS
        for stage, goal in GOALS.items()
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """One stage with what it needs from the stages before it."""
    name, stage = row.parameters
    network, graph, calibration, plan = _planned(name, device)
    model, example = network.model, network.example

    def calibrated() -> slimfast.Calibration:
        return slimfast.calibrate(model, graph, network.batches)

    def planned(found: slimfast.Calibration) -> slimfast.Plan:
        return slimfast.plan(model, example, macs=MACS, calibration=found)

    def pruned(found: slimfast.Calibration, widths: slimfast.Plan) -> nn.Module:
        return slimfast.prune_channels(
            model, widths, select="activations", repair="activations", calibration=found, verify=False
        )

    def together() -> nn.Module:
        found = calibrated()
        return pruned(found, planned(found))

    ours: dict[str, Run] = {
        CALIBRATE: calibrated,
        PLAN: lambda: planned(calibration),
        PRUNE: lambda: pruned(calibration, plan),
        TOGETHER: together,
    }
    plain: Run | str = "it has no such stage"
    if stage == CALIBRATE:
        plain = functools.partial(_moments, network, consumers_of(model, graph)[0])
    samples, size = NETWORKS[name]
    return Case(
        {OURS: ours[stage], FORWARD: network.forward, PLAIN: plain},
        error=lambda result: 0.0,
        limit=0.0,
        facts={"samples": samples, "size": size, "batch": BATCH, "goal in forwards": GOALS[stage]},
        clock=time.process_time if device == "cpu" else time.perf_counter,
    )


@functools.lru_cache(maxsize=1)
def _planned(
    name: str, device: str
) -> tuple[_Network, slimfast.ChannelGraph, slimfast.Calibration, slimfast.Plan]:
    """What the stages of one network start from."""
    network = _network(name, device)
    graph = slimfast.trace_channels(network.model, network.example)
    calibration = slimfast.calibrate(network.model, graph, network.batches)
    plan = slimfast.plan(network.model, network.example, macs=MACS, calibration=calibration)
    return network, graph, calibration, plan


def _network(name: str, device: str) -> _Network:
    samples, size = NETWORKS[name]
    torch.manual_seed(0)
    if name.startswith("decoder"):
        model = decoder().eval().to(device)
        tokens = torch.randint(model.config.vocab_size, (samples, size)).to(device)
        return _Network(
            model, {"input_ids": tokens[:2]}, [{"input_ids": part} for part in tokens.split(BATCH)]
        )
    prepare_torchvision()
    build: Callable[..., nn.Module] = importlib.import_module("timm").create_model
    model = build(name).to(device)
    images = torch.randn(samples, 3, size, size, device=device)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        with torch.no_grad():
            model.train()(images[:BATCH])
    return _Network(model.eval(), images[:1], list(images.split(BATCH)))


def decoder() -> Any:
    """A Llama of 135 million parameters, 30 blocks of width 576, with random weights."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _moments(network: _Network, consumers: list[Consumer]) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Sums and products of what each layer reads, as a user of PyTorch would add them up: float32 matrices of
    positions, multiplied in one call a layer, and sums in float64.
    """
    found: dict[str, tuple[Tensor, Tensor, int]] = {}

    def look(consumer: Consumer, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        assert x is not None
        columns = consumer.columns(x)
        total, products, count = found.get(consumer.weight, (0, 0, 0))
        found[consumer.weight] = (
            total + columns.sum(1).double(),
            products + (columns @ columns.T).double(),
            count + columns.shape[1],
        )

    modules = dict(network.model.named_modules())
    hooks = [
        modules[consumer.module].register_forward_pre_hook(
            functools.partial(look, consumer), with_kwargs=True
        )
        for consumer in consumers
    ]
    try:
        network.forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found
