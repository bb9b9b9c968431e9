"""The whole road on networks of timm with random weights, stage by stage, beside torch-pruning's whole prune.

The peer ranks filters by magnitude and cuts every layer by the same share; it measures no spectra, solves for
no budget and verifies nothing. What is compared is the time from a network to a thinner one, without and with
the verification that runs both networks.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import slimfast
from benchmarks.roofline import Roofline
from benchmarks.timing import OURS, Case, Prepared, Row, Run, Target
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

OP = "pipeline"
COLUMNS = {"cpu": ("torch_pruning",), "gpu": ("torch_pruning",)}

NETWORKS = ("resnet50", "mobilenetv3_large_100", "vit_base_patch16_224")
# Whole roads alone.
FURTHER = ("resnet18", "vgg16_bn", "efficientnet_b0", "convnext_tiny", "regnety_008", "densenet121")
STAGES = ("trace", "spectra", "plan", "select", "prune", "prune and verify")
WHOLE = "from network to thin network"
VERIFIED = "the same, verified"
MACS = 0.5
# As the peer; the stage ``select`` alone is the package's default.
SELECT: Literal["l1"] = "l1"
# Of every layer's filters; about what leaves half of the multiplications.
PEER_RATIO = 0.3


def rows(suite: str) -> tuple[Row, ...]:
    """The stages of some networks, and the whole road of all of them."""
    faster = (Target("torch_pruning", 1.0),)
    found = []
    for name in NETWORKS:
        quick = name == "resnet50"
        found += [Row(f"{name}: {s}", (name, s), quick=quick and s in ("trace", "plan")) for s in STAGES]
        found.append(Row(f"{name}: {WHOLE}", (name, WHOLE), faster))
        found.append(Row(f"{name}: {VERIFIED}", (name, VERIFIED)))
    return tuple(found + [Row(f"{name}: {WHOLE}", (name, WHOLE), faster) for name in FURTHER])


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """One stage with what it needs from the stages before it, or all of them."""
    name, stage = row.parameters
    build, example = _network(name, device)
    model, graph, spectra, plan = _planned(name, device)

    def whole(verify: bool) -> nn.Module:
        traced = slimfast.trace_channels(model, example)
        measured = slimfast.measure_spectra(model, traced)
        planned = slimfast.plan_widths(traced, measured, macs=MACS)
        return slimfast.prune_channels(model, planned, select=SELECT, verify=verify)

    ours: dict[str, Run] = {
        "trace": lambda: slimfast.trace_channels(model, example),
        "spectra": lambda: slimfast.measure_spectra(model, graph),
        "plan": lambda: slimfast.plan_widths(graph, spectra, macs=MACS),
        "select": lambda: slimfast.select(model, plan),
        "prune": lambda: slimfast.prune_channels(model, plan, select=SELECT, verify=False),
        "prune and verify": lambda: slimfast.prune_channels(model, plan, select=SELECT),
        WHOLE: lambda: whole(verify=False),
        VERIFIED: lambda: whole(verify=True),
    }
    peer = _peer(build, example) if stage in (WHOLE, VERIFIED) else "it has no such stage of its own"
    parameters = sum(p.numel() for p in model.parameters())

    def error(result: Any) -> float:
        """A thin network must run and be thinner; the other stages are tested elsewhere."""
        if not isinstance(result, nn.Module):
            return 0.0
        with torch.no_grad():
            out = result(example)
        thinner = sum(p.numel() for p in result.parameters()) < parameters
        return float(not (thinner and bool(out.isfinite().all())))

    return Case({OURS: ours[stage], "torch_pruning": peer}, error=error, limit=0.0)


def _network(name: str, device: str) -> tuple[Callable[[], nn.Module], Tensor]:
    prepare_torchvision()
    timm = importlib.import_module("timm")

    def build() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name).eval().to(device)
        return model

    return build, torch.randn(1, 3, 224, 224, device=device)


@functools.lru_cache(maxsize=1)
def _planned(
    name: str, device: str
) -> tuple[nn.Module, slimfast.ChannelGraph, dict[str, slimfast.Spectrum], slimfast.Plan]:
    """What the stages of one network start from."""
    build, example = _network(name, device)
    model = build()
    graph = slimfast.trace_channels(model, example)
    spectra = slimfast.measure_spectra(model, graph)
    return model, graph, spectra, slimfast.plan_widths(graph, spectra, macs=MACS)


def _peer(build: Callable[[], nn.Module], example: Tensor) -> Run | str:
    """torch-pruning cuts a network in place, so each run needs a new one, built off the clock."""
    try:
        peer = importlib.import_module("torch_pruning")
    except ImportError as error:
        return f"torch-pruning does not load: {error}"
    return Prepared(build, lambda model: _peer_prune(peer, model, example))


def _peer_prune(peer: Any, model: Any, example: Tensor) -> nn.Module:
    """As its own examples do: whole heads, and the constants of timm's attention set by hand afterwards."""
    attentions = [module for module in model.modules() if hasattr(module, "qkv")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = peer.pruner.BasePruner(
            model,
            example,
            importance=peer.importance.MagnitudeImportance(p=1),
            pruning_ratio=PEER_RATIO,
            head_pruning_ratio=PEER_RATIO,
            prune_num_heads=True,
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
            ignored_layers=[model.get_classifier()],
        )
        pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    return model
